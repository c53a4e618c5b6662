"""The nodes of the connected cluster, and a probe on each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lexray.cluster.doctor.findings import DeadNode, Unknown
from lexray.cluster.doctor.probe import CALLS_AT_ONCE, Clock, Probe
from lexray.cluster.doctor.rpc import Deadline, PendingCalls, answers

READY_S = 10.0
"""Seconds that a node may take to start a probe when another started one at once."""
SLOWEST = 2.0
"""A node may take this multiple of the fastest node's start time, if that is more than `READY_S`."""
SHORT_ID = 6
_UNEXPECTED = 2
"""Ray's `DeathReason` for an unexpected death."""


class Living(NamedTuple):
    """A node that Ray counts as alive."""

    id: str
    name: str
    """Its address, with a prefix of its id where several nodes share one."""
    host: str
    resources: Mapping[str, float]

    @property
    def is_head(self) -> bool:
        return "node:__internal_head__" in self.resources


def nodes_of(listed: Sequence[Mapping[str, Any]]) -> tuple[list[Living], list[DeadNode]]:
    """Split Ray's list of nodes into living ones, head first, and those that died unexpectedly."""
    alive = [node for node in listed if node["Alive"]]
    hosts = Counter(node["NodeManagerAddress"] for node in alive)
    living = []
    for node in alive:
        host = node["NodeManagerAddress"]
        name = host if hosts[host] == 1 else f"{host} ({node['NodeID'][:SHORT_ID]})"
        living.append(Living(node["NodeID"], name, host, node["Resources"]))
    dead = [
        DeadNode(
            name=node["NodeManagerAddress"], reason=_one_line(node["DeathReasonMessage"]) or "Ray does not say why"
        )
        for node in listed
        if not node["Alive"] and node["DeathReason"] == _UNEXPECTED
    ]
    return sorted(living, key=lambda node: (not node.is_head, node.name)), dead


def _one_line(text: str) -> str:
    return " ".join(text.split())


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Probed nodes of the cluster and the deadline for calls to them."""

    nodes: Sequence[Living]
    """Nodes whose probes answer, head first."""
    probes: Mapping[str, Any]
    """Probe actors by node name."""
    silent: Mapping[str, Unknown]
    """Living nodes that did not answer, by name."""
    deadline: Deadline

    def ask(self, limit_s: float, question: Callable[[Living, Any], Any], *, only_head: bool = False) -> PendingCalls:
        """Call the probe of each node, or of the head; nodes for which `question` returns None are skipped."""
        asked = [node for node in self.nodes if node.is_head or not only_head]
        refs = {node.name: question(node, self.probes[node.name]) for node in asked}
        return PendingCalls(
            {name: ref for name, ref in refs.items() if ref is not None},
            self.deadline.clock(),
            self.deadline.until(limit_s),
        )

    def answers(self, asked: PendingCalls) -> dict[str, Any]:
        """Return the answers by node name."""
        return answers(asked, self.deadline)

    def of_head(self, asked: PendingCalls) -> Any:
        """Return the head's answer."""
        return next(iter(self.answers(asked).values()), Unknown("the head did not answer"))


@contextmanager
def probed(living: Sequence[Living], deadline: Deadline, clock_of: Callable[[str], Clock]) -> Iterator[Scene]:
    """Start a probe on every node, yield those that start in time, and kill all on exit."""
    probes: dict[str, Any] = {}
    try:
        for node in living:
            place = NodeAffinitySchedulingStrategy(node.id, soft=False)
            options = ray.remote(Probe).options(
                num_cpus=0, max_concurrency=CALLS_AT_ONCE, scheduling_strategy=place, enable_task_events=False
            )
            probes[node.name] = options.remote(node.host, clock_of(node.name))
        ready = _wait_until_ready(probes, deadline)
        silent = {name: answer for name, answer in ready.items() if isinstance(answer, Unknown)}
        there = [node for node in living if node.name not in silent]
        yield Scene(nodes=there, probes=probes, silent=silent, deadline=deadline)
    finally:
        for probe in probes.values():
            ray.kill(probe)


def _wait_until_ready(probes: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
    """Wait for the probes; the limit scales with the fastest start, since a busy machine starts all of them slowly."""
    refs, asked_s = {name: probe.ready.remote() for name, probe in probes.items()}, deadline.clock()
    ray.wait(list(refs.values()), num_returns=1, timeout=deadline.left_s)
    limit_s = max(READY_S, SLOWEST * (deadline.clock() - asked_s))
    return answers(PendingCalls(refs, asked_s, min(deadline.ends_s, asked_s + limit_s)), deadline)
