"""The report on searches: tables of trials beside the published ones, and figures of where the good ones lie."""
