"""Activations with chosen subgradients at their kinks, and a numerical search for the kinks of any function."""
