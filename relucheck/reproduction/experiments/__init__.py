"""The experiments E1 to E9, as data."""
