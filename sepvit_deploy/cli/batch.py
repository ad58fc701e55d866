"""The command that classifies whole folders into Parquet."""
