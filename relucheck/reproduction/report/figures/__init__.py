"""The figures of a training report."""
