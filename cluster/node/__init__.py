"""Programs that run on the machines of a cluster: they start, keep, drain and stop Ray."""
