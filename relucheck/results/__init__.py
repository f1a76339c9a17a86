"""Tools for long runs and reports: files, a store, statistics, tables, figures, progress. Imports no torch."""
