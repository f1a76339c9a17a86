"""What a run of the gate reports: tables, documents, and what has changed since an older report."""
