"""Resolves `gpus_per_worker: auto` for the available nodes. Pure functions.

The choice is made once, before a sweep starts, and is not part of a trial's identity: on a GPU only the rounding of the
dictionary differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lexray.tuning.placement.nodes import Node, place
from lexray.tuning.trials import Trial


def with_gpus(trial: Trial, nodes: Sequence[Node]) -> Trial:
    """Return the trial with its GPUs chosen, if it leaves them open: one for each of its workers, or none.

    It gets them where the empty nodes have a GPU and the CPUs for each worker of its mesh; of a mesh that is open as
    well, for one worker. Trials that need the same GPU take turns.
    """
    if not trial.auto_gpus:
        return trial
    workers, group = (1, 1) if trial.auto_mesh else (trial.footprint.workers, trial.config.mesh.feature)
    wanted = replace(trial.footprint, workers=workers, gpus_per_worker=1.0)
    has_room = place(wanted, group, {str(number): node for number, node in enumerate(nodes)}) is not None
    return replace(trial, footprint=replace(trial.footprint, gpus_per_worker=float(has_room)), auto_gpus=False)


def gpu_lines(before: Sequence[Trial], decided: Sequence[Trial], nodes: Sequence[Node]) -> list[str]:
    """Return lines that describe the choices, where nodes have GPUs; `decided` are the trials `before`, in order."""
    chosen = [now.footprint for was, now in zip(before, decided, strict=True) if was.auto_gpus]
    gpus, on_cpus = sum(node.gpus for node in nodes), [footprint for footprint in chosen if not footprint.on_gpu]
    if not chosen or not gpus:
        return []
    lines = [f"gpus_per_worker: auto gives {len(chosen) - len(on_cpus)} of {len(chosen)} trial(s) 1 GPU a worker"]
    if on_cpus:
        most = max(footprint.workers for footprint in on_cpus)
        lines.append(
            f"{len(on_cpus)} trial(s) of up to {most} worker(s) train on CPUs: the {len(nodes)} node(s) with {gpus:g} "
            "GPU(s) have no room for a GPU and the CPUs of each worker"
        )
    return lines
