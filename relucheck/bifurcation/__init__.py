"""Compare the gradients that two subgradients give one model: whether they differ, where, and why."""
