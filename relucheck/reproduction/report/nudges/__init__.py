"""Nudges in a training report: what they do, what a subgradient does beyond them, tables and the band of a figure."""
