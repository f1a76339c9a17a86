"""The executor that trains all members at once, in batched matrix products."""
