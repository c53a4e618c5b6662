"""The commands of `lexray`, a file each: their arguments and what they do. Imports are late: help loads no torch."""
