"""Whether two subgradients give one model the same gradients, where they differ, and why."""
