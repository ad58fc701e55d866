"""The command that writes what a cluster is told."""
