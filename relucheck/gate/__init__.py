"""The gate: finds the activations of a library, checks them against the laws, and reports verdicts."""
