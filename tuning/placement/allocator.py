"""Allocates nodes to the trials of a sweep. Plain values in, plain values out: no Ray."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lexray.training.mesh.settings import MeshConfig
from lexray.tuning.placement.nodes import Node, place
from lexray.tuning.trials import Footprint

FORGOTTEN_S = 60.0
"""Seconds without a request after which the record of missing nodes is dropped."""


@dataclass(frozen=True, kw_only=True)
class MeshOption:
    """A mesh on which a trial can run, and the resources of its workers."""

    mesh: MeshConfig
    footprint: Footprint

    def on(self, nodes: Mapping[str, Node]) -> tuple[str, ...] | None:
        """Return the node of each worker; None if they do not fit."""
        return place(self.footprint, self.mesh.feature, nodes)


@dataclass(frozen=True, kw_only=True)
class MeshOptions:
    """The possible meshes of a trial, largest first."""

    all: tuple[MeshOption, ...]
    preferred: int = 0
    """Index of the mesh that the sweep file requests: the trial starts on it; earlier ones are for growing."""
    shrink_after_s: float = 300.0
    """Seconds to wait for the preferred mesh while nodes for it may still arrive."""
    grow_after_s: float = 60.0
    """Seconds that a larger mesh must have fitted before a running trial moves to it."""


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """State of a live node."""

    total: Node
    available: Node
    """Resources that Ray reports as free of all jobs."""
    is_leaving: bool = False
    """Whether the node is draining."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Snapshot of the cluster."""

    nodes: Mapping[str, NodeState]
    """Live nodes by id."""
    to_come: Mapping[str, Node] = field(default_factory=dict)
    """Nodes that an autoscaler could still add, by placeholder name."""


@dataclass(kw_only=True)
class Allocation:
    """Nodes allocated to a trial."""

    option: MeshOption
    nodes: tuple[str, ...]
    """Node of each worker in the order of ranks."""
    is_taken: bool = False
    """Whether its attempt has started."""
    larger_since_s: float | None = None
    """Time since which a larger mesh would fit."""
    is_growing: bool = False
    """Whether the trial was asked to move to a larger mesh."""


@dataclass(kw_only=True)
class Waiting:
    """A trial that waits for nodes."""

    name: str
    option: MeshOption
    since_s: float


@dataclass(kw_only=True)
class Lack:
    """Missing nodes for a mesh option, shared by all trials that request it."""

    since_s: float
    asked_s: float
    """Time of the last request."""


@dataclass(kw_only=True)
class Allocator:
    """Allocations of running trials, and the waiting trials."""

    allocations: dict[str, Allocation] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    lacking: dict[MeshOption, Lack] = field(default_factory=dict)
    """Requested options that do not fit the current nodes even when these are empty."""

    def claim(self, trial: str, name: str, mesh_options: MeshOptions, view: View, now_s: float) -> Allocation | None:
        """Allocate nodes to the trial after releasing its own; None if it has to wait."""
        had = self.allocations.pop(trial, None)
        since_s = self.waiting[trial].since_s if trial in self.waiting else now_s
        free = self.free(view)
        growing = had is not None and had.is_growing
        for option in mesh_options.all if growing else _acceptable(mesh_options, view, waited_s=now_s - since_s):
            nodes = option.on(free)
            if nodes is not None:
                self.waiting.pop(trial, None)
                self.allocations[trial] = Allocation(option=option, nodes=nodes)
                return self.allocations[trial]
        option = mesh_options.all[mesh_options.preferred]
        self.waiting[trial] = Waiting(name=name, option=option, since_s=since_s)
        self._note_lack(option, view, now_s)
        return None

    def lacked_s(self, trial: str, now_s: float) -> float:
        """Return for how long (s) nodes for the waiting trial have been missing; 0 when it only waits for its turn.

        Trials with equal options share one clock, so that each further one does not wait all over again.
        """
        waiting = self.waiting.get(trial)
        lack = None if waiting is None else self.lacking.get(waiting.option)
        return 0.0 if lack is None else now_s - lack.since_s

    def _note_lack(self, option: MeshOption, view: View, now_s: float) -> None:
        before = self.lacking.pop(option, None)
        if option.on({node_id: state.total for node_id, state in view.nodes.items() if not state.is_leaving}) is None:
            goes_on = before is not None and now_s - before.asked_s <= FORGOTTEN_S
            self.lacking[option] = Lack(since_s=before.since_s if before and goes_on else now_s, asked_s=now_s)

    def release(self, trial: str) -> None:
        """Release the trial's nodes and remove it from the waiting trials."""
        self.allocations.pop(trial, None)
        self.waiting.pop(trial, None)

    def free(self, view: View) -> dict[str, Node]:
        """Return the free resources of each node that is not draining."""
        taken = self._taken()
        left = {node_id: _less_others(state, taken[node_id]) for node_id, state in view.nodes.items()}
        return {node_id: left[node_id] for node_id, state in view.nodes.items() if not state.is_leaving}

    def should_move(self, trial: str, mesh_options: MeshOptions, view: View, now_s: float) -> bool:
        """Return whether a running trial should save its state and move: one of its nodes drains, or it can grow."""
        claim = self.allocations.get(trial)
        if claim is None:
            return False
        if any(view.nodes[node_id].is_leaving for node_id in claim.nodes if node_id in view.nodes):
            return True
        if self.waiting or not self._can_grow(trial, claim, mesh_options, view):
            claim.larger_since_s, claim.is_growing = None, False
            return False
        claim.larger_since_s = now_s if claim.larger_since_s is None else claim.larger_since_s
        claim.is_growing = now_s - claim.larger_since_s >= mesh_options.grow_after_s
        return claim.is_growing

    def _can_grow(self, trial: str, claim: Allocation, mesh_options: MeshOptions, view: View) -> bool:
        larger = [option for option in mesh_options.all if option.footprint.workers > claim.option.footprint.workers]
        alone = Allocator(allocations={other: c for other, c in self.allocations.items() if other != trial})
        free = alone.free(_with_room_back(view, claim))
        return any(option.on(free) is not None for option in larger)

    def _taken(self) -> dict[str, tuple[float, float]]:
        """Return the CPUs and GPUs that this sweep holds on each node."""
        taken: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        for claim in self.allocations.values():
            for node_id, workers in Counter(claim.nodes).items():
                cpus, gpus = taken[node_id]
                footprint = claim.option.footprint
                taken[node_id] = cpus + workers * footprint.cpus_per_worker, gpus + workers * footprint.gpus_per_worker
        return taken

    def used_nodes(self) -> set[str]:
        """Return the nodes that run a worker or are about to."""
        return {node_id for claim in self.allocations.values() for node_id in claim.nodes}

    def lines(self, now_s: float) -> list[str]:
        """Describe what each waiting trial waits for and for how long, one line each."""
        return [f"{w.name} waits for {said(w.option)}, {_duration(now_s - w.since_s)}" for w in self.waiting.values()]


def _less_others(state: NodeState, own: tuple[float, float]) -> Node:
    """Return a node's resources without those of this sweep and of others, who hold all other used resources."""
    cpus, gpus = own
    total, available = state.total, state.available
    others_cpus = max(0.0, total.cpus - available.cpus - cpus)
    others_gpus = max(0.0, total.gpus - available.gpus - gpus)
    return replace(total, cpus=total.cpus - cpus - others_cpus, gpus=total.gpus - gpus - others_gpus)


def _with_room_back(view: View, claim: Allocation) -> View:
    """Return the cluster as it would be without this allocation's trial."""
    nodes = dict(view.nodes)
    footprint = claim.option.footprint
    for node_id in claim.nodes:
        if node_id in nodes:
            state = nodes[node_id]
            available = replace(
                state.available,
                cpus=min(state.total.cpus, state.available.cpus + footprint.cpus_per_worker),
                gpus=min(state.total.gpus, state.available.gpus + footprint.gpus_per_worker),
            )
            nodes[node_id] = replace(state, available=available)
    return replace(view, nodes=nodes)


def _acceptable(mesh_options: MeshOptions, view: View, *, waited_s: float) -> Sequence[MeshOption]:
    """Return the meshes acceptable now: the preferred one while it can be had, then smaller ones that fit."""
    smaller = mesh_options.all[mesh_options.preferred :]
    staying = {node_id: state.total for node_id, state in view.nodes.items() if not state.is_leaving}
    possible = next((i for i, option in enumerate(smaller) if option.on(staying) is not None), len(smaller))
    if possible == 0:
        return smaller[:1]
    if smaller[0].on({**staying, **view.to_come}) is not None and waited_s < mesh_options.shrink_after_s:
        return smaller[:1]
    return smaller[possible:]


def said(option: MeshOption) -> str:
    """Format an option: `2 workers of 1 CPU and 1 GPU`."""
    footprint, group = option.footprint, option.mesh.feature
    per_worker = f"{footprint.cpus_per_worker:g} CPU"
    if footprint.gpus_per_worker:
        per_worker += f" and {footprint.gpus_per_worker:g} GPU"
    return f"{footprint.workers} workers of {per_worker}" + (f", {group} on one node" if group > 1 else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
