"""Clusters made and removed: `lexray up` and `lexray down`, by Terraform or on a list of hosts."""
