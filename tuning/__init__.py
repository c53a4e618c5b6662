"""Many dictionaries: from a sweep file to a frontier.

`file` reads the YAML, `trials` expands it, `planning` says what that takes, `orchestrate` runs every trial by Ray Tune
(each a Ray Train job, see `trial`), `views` show them live, `endings` stop some of them early, `results` say what came
out. The truth of a sweep lies in its folder (`sweep_folder`); everything that Ray Tune writes is a cache.
"""
