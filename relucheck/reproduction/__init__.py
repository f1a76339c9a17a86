"""The published experiments: what they are, how they run, and what is reported of them."""
