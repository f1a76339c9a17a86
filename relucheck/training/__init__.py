"""Train the members of a comparison, which differ only in their subgradient, with a control."""
