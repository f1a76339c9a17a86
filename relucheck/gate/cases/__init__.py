"""What a law looks at and answers with: a case, probes, the kink table, violations and the scripts that reproduce them."""
