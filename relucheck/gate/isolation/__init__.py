"""Isolation of other people's code, so that it affects nothing outside itself."""
