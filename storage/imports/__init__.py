"""Rows that other programs stored become datasets."""
