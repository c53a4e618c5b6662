"""The actor that allocates nodes to the trials of one sweep. It runs on the head for the sweep's lifetime."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ray.autoscaler.sdk import request_resources

from lexray.tuning.placement.allocator import Allocator, MeshOption, MeshOptions, View, said
from lexray.tuning.placement.nodes import HEAD, ZONE, place, zones_of
from lexray.tuning.ray_backend.cluster_view import RecentView, cluster_view
from lexray.tuning.ray_backend.launch_failures import launch_failures
from lexray.tuning.ray_backend.window_servers import WindowServers
from lexray.tuning.trials import Footprint

ON_HEAD = {HEAD: 0.0001}
"""A small amount of a resource that only the head has, which is never removed."""
WAIT_S = 3600.0
"""Default limit in seconds of waiting for autoscaled nodes: the head and its network cost money meanwhile."""


class Bundle(NamedTuple):
    """Resources on one node, as requested from the autoscaler."""

    resources: tuple[tuple[str, float], ...]
    """Names and amounts."""
    zone: str | None
    """Zone of the node; None for any."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Mesh, nodes and window servers of one attempt at a trial."""

    option: MeshOption
    nodes: tuple[str, ...]
    """Node of each worker in the order of ranks."""
    servers: dict[str, Any] = field(default_factory=dict)
    """Window server of each of these nodes."""


class Placer:
    """Runs as a Ray actor, see `placing` in `allocator_client`; its decisions are those of `Allocator`."""

    def __init__(
        self,
        servers: WindowServers | None,
        view: Callable[[], View] = cluster_view,
        clock: Callable[[], float] = time.time,
        *,
        wait_at_most_s: float | Literal["auto"] = "auto",
        failures: Callable[[], list[str]] | None = None,
    ) -> None:
        self._allocator = Allocator()
        self._wait_at_most_s, self._failures = wait_at_most_s, failures or launch_failures
        self._servers = servers
        self._view = RecentView(view, clock)
        self._clock = clock
        self._asked: list[Bundle] = []

    def claim(self, trial: str, name: str, mesh_options: MeshOptions) -> bool:
        """Return whether the trial got nodes; its earlier ones are released."""
        # In an older view the workers that the trial had until now would be somebody else's.
        view = self._view.now() if trial in self._allocator.allocations else self._view()
        claim = self._allocator.claim(trial, name, mesh_options, view, self._clock())
        self._settle(view)
        return claim is not None

    def take(self, trial: str, name: str, mesh_options: MeshOptions) -> Placement | None:
        """Return the placement of the next attempt: the nodes just claimed, or others; None if it has to wait."""
        claim = self._allocator.allocations.get(trial)
        if (claim is None or claim.is_taken) and not self.claim(trial, name, mesh_options):
            return None
        view = self._view()
        claim = self._allocator.allocations[trial]
        if any(node_id not in view.nodes for node_id in claim.nodes):
            self._allocator.release(trial)  # one was lost just now
            return None
        claim.is_taken = True
        nodes = {node_id: view.nodes[node_id].total for node_id in claim.nodes}
        servers = self._servers.on(nodes) if self._servers is not None else {}
        return Placement(option=claim.option, nodes=claim.nodes, servers=servers)

    def release(self, trial: str) -> None:
        self._allocator.release(trial)
        self._settle(self._view())

    def lost(self, trial: str) -> list[str]:
        """Return the lost or draining nodes of the trial's attempt."""
        view = self._view.now()
        claim = self._allocator.allocations.get(trial)
        nodes = dict.fromkeys(claim.nodes) if claim is not None else {}
        return [node_id for node_id in nodes if node_id not in view.nodes or view.nodes[node_id].is_leaving]

    def should_move(self, trial: str, mesh_options: MeshOptions) -> bool:
        """Return whether the running trial should save its state and move to other nodes."""
        return self._allocator.should_move(trial, mesh_options, self._view(), self._clock())

    def waiting(self) -> list[str]:
        """Return what each waiting trial waits for, one line each."""
        self._settle(self._view())
        return self._allocator.lines(self._clock())

    def launch_failures(self) -> list[str]:
        """Return why awaited nodes are not launched, one line for each pool; empty while no trial waits."""
        return self._failures() if self._allocator.waiting else []

    def overdue(self, trial: str) -> str:
        """Return why the waiting trial should be given up, in one line; empty while it may wait.

        Only missing nodes count, not the time that a trial waits for its turn on nodes that there are.
        """
        limit_s = self._wait_at_most_s
        if limit_s == "auto":
            limit_s = WAIT_S if self._view().to_come else math.inf
        lacked_s = self._allocator.lacked_s(trial, self._clock())
        if lacked_s < limit_s:
            return ""
        wanted = self._allocator.waiting[trial].option
        causes = self._failures() or ["the autoscaler reports no failed launch; see `lexray doctor`"]
        waited = f"no nodes for {said(wanted)} in {lacked_s:.0f} s (resources.wait_at_most_s is {limit_s:.0f})"
        return f"{waited}: {'; '.join(causes)}"

    def has_room(self, footprint: Footprint) -> bool:
        """Return whether workers of this footprint would fit now."""
        return place(footprint, 1, self._allocator.free(self._view())) is not None

    def close(self) -> None:
        self._ask_for([])
        if self._servers is not None:
            self._servers.close()

    def _settle(self, view: View) -> None:
        """End unused servers, and request awaited nodes from the autoscaler."""
        if self._servers is not None:
            staying = [node_id for node_id, node in view.nodes.items() if not node.is_leaving]
            self._servers.keep_only(self._allocator.used_nodes(), staying, self._clock())
        if view.to_come or self._asked:
            self._ask_for(wanted_bundles(self._allocator, view) if self._allocator.waiting else [])

    def _ask_for(self, bundles: list[Bundle]) -> None:
        """Request a minimum cluster size from the autoscaler; an empty list removes the request."""
        if bundles != self._asked:
            request_resources(
                bundles=[dict(bundle.resources) for bundle in bundles],
                bundle_label_selectors=[{} if bundle.zone is None else {ZONE: bundle.zone} for bundle in bundles],
            )
            self._asked = bundles


def wanted_bundles(allocator: Allocator, view: View) -> list[Bundle]:
    """Return what running trials take, and waiting ones as far as the cluster can become large enough for all of them.

    Each trial has the zone where it would run: without one, the autoscaler could start its nodes in two.
    """
    staying = {node_id: state.total for node_id, state in view.nodes.items() if not state.is_leaving}
    all_nodes = {**staying, **view.to_come}
    several = len(zones_of(node.zone for node in all_nodes.values())) > 1
    left, bundles = dict(all_nodes), list[Bundle]()
    held = [(claim.option, claim.nodes) for claim in allocator.allocations.values()]
    for option, claimed in [*held, *((waiting.option, None) for waiting in allocator.waiting.values())]:
        places = claimed or option.on(left)
        if places is None:
            continue  # Ray's autoscaler does nothing at all for a request of which any part can never be
        for node_id, workers in Counter(places).items():
            if node_id in left:
                left[node_id] = left[node_id].less(option.footprint, workers)
        zones = {all_nodes[node_id].zone for node_id in places if node_id in all_nodes}
        bundles += _bundles(option, zones.pop() if several and len(zones) == 1 else None)
    return bundles


def _bundles(option: MeshOption, zone: str | None) -> list[Bundle]:
    """Return one bundle for each feature group of workers."""
    footprint, group = option.footprint, option.mesh.feature
    amounts = {"CPU": footprint.cpus_per_worker * group, "GPU": footprint.gpus_per_worker * group}
    resources = tuple((name, amount) for name, amount in amounts.items() if amount)
    return [Bundle(resources, zone)] * (footprint.workers // group)
