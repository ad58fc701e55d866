"""The command that answers requests itself."""
