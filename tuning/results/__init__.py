"""Results of a sweep: frontier, stability, comparisons, the report."""
