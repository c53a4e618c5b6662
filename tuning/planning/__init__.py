"""Estimates of a sweep's memory, placement, time and cost, and their comparison with the actual values."""
