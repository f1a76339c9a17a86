"""One forward of a model: its arguments, its state, and the kinks that no setting reaches."""
