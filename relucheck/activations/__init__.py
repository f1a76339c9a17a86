"""Activations with chosen subgradients at their kinks, and a numerical search for kinks."""
