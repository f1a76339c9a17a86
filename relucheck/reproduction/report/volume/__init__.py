"""The report of E4: volumes of bifurcation zones beside the published ones."""
