"""The model: as the paper writes it, its checkpoints, and its exact rewrites for deployment."""
