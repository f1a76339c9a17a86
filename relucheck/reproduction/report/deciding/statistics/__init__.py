"""The statistics that decide claims: a registered function each."""
