"""The report on searches: tables and figures of trials, beside the published ones."""
