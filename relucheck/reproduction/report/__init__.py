"""What is said of an experiment: summaries, claims, tables, figures, documents."""
