"""torch behind the port."""
