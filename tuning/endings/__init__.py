"""Reasons to end a trial before its last step: early stopping, deadlines, spent hours."""
