"""SepViT, from weights to a checked, fast deployment."""
