"""Sweeps as jobs of a cluster: what is sent, under which name, and what the job server says of it."""
