"""What every long run and every report needs: files, a store, statistics, tables, figures, progress. Imports no torch."""
