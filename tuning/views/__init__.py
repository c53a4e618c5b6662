"""Views of a running sweep, fed from what its trials write: the terminal, W&B."""
