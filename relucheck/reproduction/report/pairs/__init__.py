"""The report of E7: pairs of tuned and default subgradients, and the response surface."""
