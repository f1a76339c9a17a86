"""Cases, which laws check, with probe points, kink tables, violations and scripts."""
