"""What a sweep found: frontier, stability, comparisons, the report."""
