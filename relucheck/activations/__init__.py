"""Activations with a chosen subgradient at their kinks, and the search for kinks of any function."""
