"""Measures taken once of a finished dictionary, on test rows; defined in `docs/metrics.md`."""
