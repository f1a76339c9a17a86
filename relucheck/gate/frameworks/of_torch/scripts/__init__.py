"""Reproducing scripts in torch."""
