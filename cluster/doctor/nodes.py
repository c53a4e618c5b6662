"""The nodes of the connected cluster, and a probe on each: an actor whose calls run side by side.

Calls have a time limit, so that neither a node that is silent nor a call that hangs keeps another waiting.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lexray.cluster.doctor.findings import DeadNode, StoreFinding, Unknown
from lexray.cluster.doctor.stores import missing_folders, remove_empty, write_one_key
from lexray.storage.errors import named_line
from lexray.storage.objects.settings import StorageSettings

CALLS_AT_ONCE = 12
Clock = Callable[[], float]
READY_S = 10.0
"""Seconds that a node may take to start a probe when another started one at once."""
SLOWEST = 2.0
"""A node may take this multiple of the fastest node's start time, if that is more than `READY_S`."""
SHORT_ID = 6
_UNEXPECTED = 2
"""Ray's `DeathReason` for an unexpected death."""


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """The end of the whole run."""

    ends_s: float
    """Time on `clock`, in seconds."""
    clock: Callable[[], float] = time.monotonic
    """Returns the current time in seconds."""

    @staticmethod
    def after(seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        return Deadline(ends_s=clock() + seconds, clock=clock)

    @property
    def left_s(self) -> float:
        return max(0.0, self.ends_s - self.clock())

    def until(self, limit_s: float) -> float:
        """Return the time at which a call limited to `limit_s` seconds is given up."""
        return min(self.ends_s, self.clock() + limit_s)


class PendingCalls(NamedTuple):
    """Pending calls of one question to several nodes."""

    refs: Mapping[str, Any]
    """Ray object references by node name."""
    asked_s: float
    until_s: float


def answers(asked: PendingCalls, deadline: Deadline) -> dict[str, Any]:
    """Return each node's answer by name, or `Unknown` with the reason for its silence."""
    names = {ref: name for name, ref in asked.refs.items()}
    if not names:
        return {}
    timeout_s = max(0.0, asked.until_s - deadline.clock())
    done, _ = ray.wait(list(names), num_returns=len(names), timeout=timeout_s)
    waited_s = max(0.0, asked.until_s - asked.asked_s)
    silent = {name: Unknown(f"no answer in {waited_s:.0f} s") for name in names.values()}
    return silent | {names[ref]: _answer(ref) for ref in done}


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause = error.cause or error
        return Unknown(named_line(cause))
    except RayError as error:
        return Unknown(named_line(error))


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
            name=node["NodeManagerAddress"],
            reason=" ".join(node["DeathReasonMessage"].split()) or "Ray does not say why",
        )
        for node in listed
        if not node["Alive"] and node["DeathReason"] == _UNEXPECTED
    ]
    return sorted(living, key=lambda node: (not node.is_head, node.name)), dead


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

    def ask(self, limit_s: float, question: Callable[[Living, Any], Any]) -> PendingCalls:
        """Call the probe of each node; nodes for which `question` returns None are skipped."""
        refs = {node.name: question(node, self.probes[node.name]) for node in self.nodes}
        return PendingCalls(
            {name: ref for name, ref in refs.items() if ref is not None},
            self.deadline.clock(),
            self.deadline.until(limit_s),
        )

    def answers(self, asked: PendingCalls) -> dict[str, Any]:
        """Return the answers by node name."""
        return answers(asked, self.deadline)

    def of_head(self, limit_s: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function on the head; return its answer."""

        def question(node: Living, probe: Any) -> Any:
            return probe.call.remote(function, *arguments) if node.is_head else None

        return next(iter(self.answers(self.ask(limit_s, question)).values()), Unknown("the head did not answer"))


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
            probes[node.name] = options.remote(clock_of(node.name))
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


class Probe:
    """Runs functions of this package on the node."""

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._made: list[str] = []

    def ready(self) -> None:
        """Answers as soon as the process is there."""

    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock()

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Return what the function returns here."""
        return function(*arguments, **named)

    def output(self, url: str, settings: StorageSettings, name: str) -> StoreFinding:
        """Write, read and delete a key, and remember the folders that the write makes."""
        self._made = missing_folders(url)
        return write_one_key(url, settings, name)

    def tidy(self) -> None:
        """Remove folders that a write made."""
        remove_empty(self._made)
