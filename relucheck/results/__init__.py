"""Tools for long runs and reports: files, statistics, tables, progress. Imports no torch."""
