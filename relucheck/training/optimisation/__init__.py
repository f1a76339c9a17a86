"""Optimisers, and all parameters of a model in one tensor for them."""
