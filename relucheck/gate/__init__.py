"""The gate: finds a library's activations, checks them against the laws, and reports."""
