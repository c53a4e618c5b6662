"""Many dictionaries: from a sweep file to a frontier.

`sweep_file` reads the YAML, `trials` expands it, `orchestrate` runs every trial by Ray Tune (each a Ray Train job, see
`trial`), `progress` and `wandb_mirror` show them live, and `frontier` and `report` say what came out. The truth of a
sweep lies in its folder (`sweep_folder`); everything that Ray Tune writes is a cache.
"""
