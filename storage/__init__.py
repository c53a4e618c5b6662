"""Activations at rest and in motion; the lowest floor, it imports nothing of lexray's.

At rest: a dataset is a manifest plus immutable shards of checksummed chunks (`manifest`, `writer`, `reader`), harvested
from a model (`harvest`) and kept behind one fsspec seam (`store`). In motion: which rows are in batch t is a pure
function (`order`), turned into permuted windows (`windows`), shared by all trials of a node (`server`) and cut into
batches (`stream`).
"""
