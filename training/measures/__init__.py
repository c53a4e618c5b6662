"""Measures taken once of a finished dictionary, on held-out rows; defined in `docs/metrics.md`."""
