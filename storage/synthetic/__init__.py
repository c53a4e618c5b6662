"""Datasets without a store: rows of known features, generated chunk by chunk where they are read."""
