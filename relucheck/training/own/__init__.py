"""Train a user's model, with its mini-batches, loss and optimiser, by the forking executor."""
