"""The published searches, and the trainings that follow them, as data: E7 and E8."""
