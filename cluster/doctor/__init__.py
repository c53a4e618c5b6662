"""Preflight of a cluster: thin gatherers ask each node, pure checks judge what they found."""
