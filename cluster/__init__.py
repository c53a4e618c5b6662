"""The way in and out: the `lexray` command and how it finds a Ray cluster.

`cli` is the command line, `connect` starts a local Ray or joins a running one. Nothing below imports from here.
"""
