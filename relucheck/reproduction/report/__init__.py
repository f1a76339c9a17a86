"""Reports on experiments: summaries, claims, conclusions, tables, figures, documents."""
