"""The base of relucheck's errors."""

from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be examined as asked."""
