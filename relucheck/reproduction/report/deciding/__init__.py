"""The statistics that decide published claims, and the verdicts on all claims."""
