"""What reports say of an experiment: summaries, claims, conclusions, tables, figures, documents."""
