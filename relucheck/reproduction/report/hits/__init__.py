"""The report of E9: counts of hits beside the published ones, and the fit of arithmetics."""
