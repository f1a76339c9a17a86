"""What laws check and return: cases, probe points, the kink table, violations, and scripts that reproduce violations."""
