"""`python -m cluster` is `lexray`."""

from cluster.cli import main

main()
