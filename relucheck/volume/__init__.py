"""The share of random networks that bifurcate, decided for many networks at once."""
