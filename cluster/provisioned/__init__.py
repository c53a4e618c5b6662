"""A cluster that the templates of `infra/` made: what it is, how to reach it, what runs on it."""
