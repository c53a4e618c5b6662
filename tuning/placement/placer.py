"""The actor that gives nodes to the trials of one sweep. It lives on the head, as long as the sweep."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.autoscaler.sdk import request_resources

from lexray.tuning.placement.book import Book, View, Wish, Wishes
from lexray.tuning.placement.cluster_view import RecentView, cluster_view
from lexray.tuning.placement.nodes import HEAD, place
from lexray.tuning.trials import Footprint
from lexray.tuning.window_servers import WindowServers

ON_HEAD = {HEAD: 0.0001}
"""A little of what only the head has: nobody takes that node away while the cluster lives."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where one attempt at a trial runs."""

    wish: Wish
    nodes: tuple[str, ...]
    """Node of each worker in the order of ranks."""
    servers: dict[str, Any] = field(default_factory=dict)
    """Window server of each of these nodes."""


class Placer:
    """Runs as a Ray actor; see `lexray.tuning.placement.rooms.placing`. Its decisions are those of `Book`."""

    def __init__(
        self,
        servers: WindowServers | None,
        view: Callable[[], View] = cluster_view,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._book = Book()
        self._servers = servers
        self._view = RecentView(view, clock)
        self._clock = clock
        self._asked: list[dict[str, float]] = []

    def claim(self, trial: str, name: str, wishes: Wishes) -> bool:
        """Whether the trial got nodes. Those it had before are given back."""
        # In an older view the workers that the trial had until now would be somebody else's.
        view = self._view.now() if trial in self._book.claims else self._view()
        claim = self._book.claim(trial, name, wishes, view, self._clock())
        self._settle(view)
        return claim is not None

    def take(self, trial: str, name: str, wishes: Wishes) -> Placement | None:
        """The placement of the trial's next attempt: the nodes just claimed for it, or others; None: it waits."""
        claim = self._book.claims.get(trial)
        if (claim is None or claim.is_taken) and not self.claim(trial, name, wishes):
            return None
        view = self._view()
        claim = self._book.claims[trial]
        if any(node_id not in view.nodes for node_id in claim.nodes):
            self._book.release(trial)  # one was lost just now
            return None
        claim.is_taken = True
        nodes = {node_id: view.nodes[node_id].total for node_id in claim.nodes}
        servers = self._servers.on(nodes) if self._servers is not None else {}
        return Placement(wish=claim.wish, nodes=claim.nodes, servers=servers)

    def release(self, trial: str) -> None:
        self._book.release(trial)
        self._settle(self._view())

    def lost(self, trial: str) -> list[str]:
        """The nodes of the trial's attempt that are gone, or about to go."""
        view = self._view.now()
        claim = self._book.claims.get(trial)
        nodes = dict.fromkeys(claim.nodes) if claim is not None else {}
        return [node_id for node_id in nodes if node_id not in view.nodes or view.nodes[node_id].is_leaving]

    def should_move(self, trial: str, wishes: Wishes) -> bool:
        """Whether the running trial should save its state and take other nodes."""
        return self._book.should_move(trial, wishes, self._view(), self._clock())

    def waiting(self) -> list[str]:
        """Who waits for what, one line each."""
        self._settle(self._view())
        return self._book.lines(self._clock())

    def has_room(self, footprint: Footprint) -> bool:
        """Whether workers like these would fit now."""
        return place(footprint, 1, self._book.free(self._view())) is not None

    def close(self) -> None:
        self._ask_for([])
        if self._servers is not None:
            self._servers.close()

    def _settle(self, view: View) -> None:
        """End servers that nobody uses, and ask the autoscaler for what is waited for."""
        if self._servers is not None:
            staying = [node_id for node_id, node in view.nodes.items() if not node.is_leaving]
            self._servers.keep_only(self._book.used_nodes(), staying, self._clock())
        if view.to_come or self._asked:
            held = [claim.wish for claim in self._book.claims.values()]
            waited = [waiting.wish for waiting in self._book.waiting.values()]
            self._ask_for([bundle for wish in [*held, *waited] for bundle in _bundles(wish)] if waited else [])

    def _ask_for(self, bundles: list[dict[str, float]]) -> None:
        """Tell the autoscaler how large the cluster has to be; nothing: as the work there is needs it."""
        if bundles != self._asked:
            request_resources(bundles=bundles)
            self._asked = bundles


def _bundles(wish: Wish) -> list[dict[str, float]]:
    """What a trial takes as the autoscaler is told of it: the workers of a feature group in one piece."""
    footprint, group = wish.footprint, wish.mesh.feature
    bundle = {"CPU": footprint.cpus_per_worker * group, "GPU": footprint.gpus_per_worker * group}
    return [{name: amount for name, amount in bundle.items() if amount}] * (footprint.workers // group)
