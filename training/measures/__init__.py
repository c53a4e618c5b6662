"""What is measured once of a finished dictionary, on held-out rows; `docs/metrics.md` says what each number means."""
