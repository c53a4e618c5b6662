"""Worlds whose features are known, and how much of them dictionaries find."""
