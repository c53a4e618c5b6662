"""One dictionary: what it is, how its loss is computed, and how it is trained on any number of workers.

The architectures live in `dictionaries/`, one file each, written once for every mesh against two axis objects (`axes`)
and a few sparse operations (`sparse_ops`). `engine` and `adam_states` are the only files that know DeepSpeed; `loop`
is the training loop, a generator of step records with hooks (`hooks`); `checkpoints` and `saved` are what remains on
disk.
"""
