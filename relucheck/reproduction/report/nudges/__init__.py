"""Nudges in a training report: effects beyond them, tables, and the band of a figure."""
