"""Triton's Python models, whose sources are copied into a repository, and the picture that warms a server up."""
