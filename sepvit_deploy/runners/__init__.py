"""Ways to run a model on a batch of images, behind one protocol."""
