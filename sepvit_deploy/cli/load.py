"""The command that puts a load on a server."""
