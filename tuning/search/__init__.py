"""Points that are chosen while a sweep runs, from what its trials measured so far."""
