"""Whether each trial of a sweep has room on the nodes at hand when nothing else runs there; refused if it has not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lexray.storage.errors import UserError
from lexray.storage.manifest import Manifest
from lexray.storage.units import gib
from lexray.training.cost.memory import needs
from lexray.tuning.placement.nodes import Node, most_in_one_zone
from lexray.tuning.planning.mesh_choice import USABLE, capacities_of, with_mesh
from lexray.tuning.trials import Footprint, Trial


def refuse_what_has_no_room(
    trials: Sequence[Trial], manifest: Manifest, nodes: Sequence[Node], gpu_bytes: int | None
) -> None:
    """Raise UserError for the first trial whose workers do not fit the memory of the nodes even when these are empty.

    `gpu_bytes` is the memory of a GPU, None where it is not known.
    """
    for trial in trials:
        footprint = trial.footprint
        wanted = needs(trial.config, trial.config.data.sites_in(manifest), on_gpu=footprint.on_gpu)
        of_gpu = int((gpu_bytes or 0) * min(1.0, footprint.gpus_per_worker))
        if of_gpu and wanted.device > USABLE * of_gpu:
            lack = _lack("GPU memory", wanted.device, "a GPU", of_gpu)
        elif most_in_one_zone((n.zone, _workers(n, footprint, wanted.host)) for n in nodes) < footprint.workers:
            largest = max((int(node.memory_bytes) for node in nodes), default=0)
            lack = _lack("memory", wanted.host, f"the largest of {len(nodes)} node(s)", largest)
        else:
            continue
        raise UserError(
            f"resources: {footprint.workers} worker(s) of trial {trial.name} each need {lack}; "
            + _what_fits(trial, manifest, nodes, gpu_bytes)
            + (", resources.gpus_per_worker: 0 trains on CPUs" if footprint.on_gpu else "")
        )


def _workers(node: Node, footprint: Footprint, each_bytes: int) -> int:
    """Workers that a node has CPUs, GPUs and memory for; a node whose memory is not known has enough."""
    by_resources = node.workers(footprint)
    return min(by_resources, int(USABLE * node.memory_bytes // each_bytes)) if node.memory_bytes else by_resources


def _lack(kind: str, need: int, where: str, has: int) -> str:
    return f"{gib(need)} of {kind}, {where} has {gib(int(USABLE * has))} for them ({USABLE:.0%} of {gib(has)})"


def _what_fits(trial: Trial, manifest: Manifest, nodes: Sequence[Node], gpu_bytes: int | None) -> str:
    opened = replace(trial, auto_mesh=True)
    try:
        fits = with_mesh(opened, manifest, lambda footprint: capacities_of(nodes, footprint, gpu_bytes))
    except UserError:
        return "no mesh on these nodes would fit: use larger nodes, or a smaller width or data.batch_rows"
    mesh = fits.config.mesh
    return f"resources.mesh: {{data: {mesh.data}, feature: {mesh.feature}}} would fit"
