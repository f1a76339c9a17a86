"""Train a user's model: any eager model, mini-batches, loss and optimiser, with the forking executor."""
