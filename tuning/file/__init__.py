"""From a sweep file's YAML to the points of its axes."""
