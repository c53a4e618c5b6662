"""Ray as a sweep uses it: nodes, window servers, Tune's queue and the workers of a trial."""
