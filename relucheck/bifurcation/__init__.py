"""Compare the gradients that two subgradients give a model: whether they differ, and why."""
