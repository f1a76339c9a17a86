"""Estimate the share of random networks that bifurcate, deciding many networks at once."""
