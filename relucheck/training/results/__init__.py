"""Results of members and seeds: what they hold, thinning, and files."""
