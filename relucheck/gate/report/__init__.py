"""What a run of the gate reports: tables, diagnoses, documents and drift."""
