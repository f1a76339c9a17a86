"""The gate: finds the activations of a library, runs the laws on them, and reports verdicts."""
