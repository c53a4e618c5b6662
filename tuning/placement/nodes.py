"""Nodes of a cluster as plain values, and the placement of workers on them. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lexray.storage.errors import UserError
from lexray.tuning.trials import Footprint, Trial

HEAD = "node:__internal_head__"
"""Resource that only the head of a cluster has."""
ZONE = "ray.io/availability-zone"
"""Ray's label of a node's zone; the variable RAY_NODE_ZONE sets it."""
DRIVER_BYTES = 256 * 2**20
"""Memory of the process that waits for a trial's workers, on the head."""
_ROUNDING = 1e-6
"""Ray counts in ten thousandths: sums of thirds are not exact."""


def trials_on_head(nodes: Iterable[Mapping[str, float]]) -> int | None:
    """Return how many trials can run at once by the head's memory, given Ray's resources of each node.

    None where no node is the head. Raises UserError when its memory is too small for one.
    """
    memory_bytes = next((node.get("memory", 0.0) for node in nodes if HEAD in node), None)
    if memory_bytes is None:
        return None
    if memory_bytes < DRIVER_BYTES:
        raise UserError(
            f"the cluster's head has {memory_bytes / 2**20:,.0f} MiB of memory for functions, each running trial takes "
            f"{DRIVER_BYTES / 2**20:,.0f} MiB there; start it with a larger `--memory`"
        )
    return int(memory_bytes // DRIVER_BYTES)


@dataclass(frozen=True)
class Node:
    """Resources of one node for workers."""

    cpus: float
    gpus: float
    memory_bytes: float = 0.0
    """Memory for processes, without Ray's object store."""
    zone: str | None = None
    """Zone of the node; None if unknown: such a node counts in every zone."""

    def workers(self, footprint: Footprint) -> int:
        """Return the number of a trial's workers that fit on this node when it is empty."""
        by_cpu = (self.cpus + _ROUNDING) // footprint.cpus_per_worker
        by_gpu = (self.gpus + _ROUNDING) // footprint.gpus_per_worker if footprint.gpus_per_worker else by_cpu
        return int(min(by_cpu, by_gpu))

    def less(self, footprint: Footprint, workers: int) -> Node:
        """Return the resources left after placing `workers`; never negative."""
        return replace(
            self,
            cpus=max(0.0, self.cpus - workers * footprint.cpus_per_worker),
            gpus=max(0.0, self.gpus - workers * footprint.gpus_per_worker),
        )


def zones_of(zones: Iterable[str | None]) -> list[str | None]:
    """Return the known zones, sorted; only None if no zone is known."""
    return [*sorted({zone for zone in zones if zone is not None})] or [None]


def most_in_one_zone(counts: Iterable[tuple[str | None, int]]) -> int:
    """Return the largest sum over the nodes of one zone, from (zone, number) pairs."""
    pairs = list(counts)
    return max(sum(n for of, n in pairs if of in (zone, None)) for zone in zones_of(of for of, _ in pairs))


def place(footprint: Footprint, group: int, free: Mapping[str, Node]) -> tuple[str, ...] | None:
    """Return the node of each worker by rank; None if they do not all fit in one zone.

    `group` consecutive workers share a node. It uses as few nodes as possible, and of these the tightest, to avoid
    fragmentation.
    """
    groups = {node_id: node.workers(footprint) // group for node_id, node in free.items()}
    placed = []
    for zone in zones_of(node.zone for node in free.values()):
        inside = {node_id: room for node_id, room in groups.items() if free[node_id].zone in (zone, None)}
        places = _place_groups(footprint.workers // group, group, inside)
        if places is not None:
            placed.append(places)
    return min(placed, key=lambda places: (len(set(places)), sum(groups[node] for node in set(places))), default=None)


def _place_groups(number: int, group: int, capacities: Mapping[str, int]) -> tuple[str, ...] | None:
    """Place `number` groups: on the roomiest node first, and the rest on the tightest that fits."""
    groups = dict(capacities)
    left, places = number, list[str]()
    while left > 0:
        enough = [node_id for node_id, room in groups.items() if room >= left]
        if enough:
            chosen = min(enough, key=lambda node_id: (groups[node_id], node_id))
        else:
            chosen = min(groups, key=lambda node_id: (-groups[node_id], node_id), default="")
        taken = min(left, groups.pop(chosen, 0))
        if not taken:
            return None
        places += [chosen] * (taken * group)
        left -= taken
    return tuple(places)


def refuse_what_never_fits(trials: Sequence[Trial], nodes: Sequence[Node]) -> None:
    """Raise UserError for the first trial that does not fit the empty cluster."""
    empty = {str(number): node for number, node in enumerate(nodes)}
    for trial in trials:
        footprint, group = trial.footprint, trial.config.mesh.feature
        if place(footprint, group, empty) is not None:
            continue
        wants = f"{footprint.workers} workers of {footprint.cpus_per_worker:g} CPU"
        if footprint.gpus_per_worker:
            wants += f" and {footprint.gpus_per_worker:g} GPU"
        if group > 1:
            wants += f", {group} at a time on one node (mesh.feature)"
        has = f"{sum(n.cpus for n in nodes):g} CPU, {sum(n.gpus for n in nodes):g} GPU on {len(nodes)} node(s)"
        if len(zones_of(node.zone for node in nodes)) > 1:
            has += f" in {len(zones_of(node.zone for node in nodes))} zones, of which a trial uses one"
        fitting = group * most_in_one_zone((node.zone, node.workers(footprint) // group) for node in nodes)
        raise UserError(
            f"resources.workers: trial {trial.name} wants {wants}, but the cluster ({has}) has room for {fitting}; "
            "lower resources.workers or resources.cpus_per_worker"
        )
