"""The published searches over learning rates and subgradients, and the trainings that follow them, as data: E7 and E8."""
