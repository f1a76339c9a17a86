"""How often a pre-activation lands on a kink: predicted, planned and validated."""
