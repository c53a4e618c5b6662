"""The share of a node's memory that Ray's object store has: windows of rows lie there, processes do not."""

STORE_SHARE = 0.3
"""What Ray takes where nobody says otherwise, and what the clusters of the templates are told to take."""
