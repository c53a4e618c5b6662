"""Questions that take more than one round: clocks, connections between all nodes, sums over them, a shared folder."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import RayError

from lexray.cluster.doctor.findings import NOT_ASKED, AllReduce, ClockReading, StoreFinding, StoreSpeed, Unknown
from lexray.cluster.doctor.nodes import Living, Scene
from lexray.cluster.doctor.stores import leave_marker, remove_marker, sees_marker
from lexray.cluster.doctor.traffic import SUM_TIMEOUT_S, Ring, knock, open_door, sum_over_nodes
from lexray.storage.errors import one_line
from lexray.storage.objects.settings import StorageSettings
from lexray.tuning.ray_backend.meeting import open_meeting

CLOCK_S, KNOCK_S, STORE_S = 2.0, 5.0, 10.0
"""Longest that a node may take to tell the time, to connect to all others, to use a store."""
SUM_S = SUM_TIMEOUT_S + 4.0
LEAST_SUM_S = 3.0
CLOCK_READINGS = 3
_ASKERS = 16


def read_clocks(scene: Scene) -> dict[str, ClockReading | Unknown]:
    """Each node's clock against ours, by the fastest of a few readings."""

    def read(node: Living) -> ClockReading | Unknown:
        try:
            readings = [_read_clock(scene.probes[node.name], scene.deadline.left_s) for _ in range(CLOCK_READINGS)]
        except RayError as error:
            return Unknown(one_line(error))
        return min(readings, key=lambda reading: reading.error_s)

    with ThreadPoolExecutor(_ASKERS) as pool:
        return dict(zip((node.name for node in scene.nodes), pool.map(read, scene.nodes), strict=True))


def _read_clock(probe: Any, left_s: float) -> ClockReading:
    before_s, began = time.time(), time.perf_counter()
    there_s = ray.get(probe.now.remote(), timeout=min(CLOCK_S, left_s))
    half_s = (time.perf_counter() - began) / 2
    return ClockReading(ahead_s=there_s - before_s - half_s, error_s=half_s)


def unreached(scene: Scene) -> dict[str, dict[str, str]]:
    """By name of a node, the nodes that it cannot connect to, and why."""
    if len(scene.nodes) < 2:
        return {}
    opened = scene.answers(scene.ask(KNOCK_S, lambda node, probe: probe.call.remote(open_door, node.host)))
    doors = {name: door for name, door in opened.items() if not isinstance(door, Unknown)}
    closed = {name: f"cannot listen: {door.reason}" for name, door in opened.items() if isinstance(door, Unknown)}

    def knock_at_others(node: Living, probe: Any) -> Any:
        return probe.call.remote(knock, {name: door for name, door in doors.items() if name != node.name})

    told = scene.answers(scene.ask(KNOCK_S, knock_at_others))
    return {
        name: {"the others": found.reason} if isinstance(found, Unknown) else found
        for name, found in told.items()
        if found
    } | {name: {"anybody": why} for name, why in closed.items()}


def sum_over(scene: Scene, backend: str, names: list[str]) -> AllReduce | Unknown:
    """One all-reduce over these nodes, as the slowest of them saw it."""
    if len(names) < 2:
        return NOT_ASKED
    if scene.deadline.left_s < LEAST_SUM_S:
        return Unknown("no time was left", is_asked=False)
    host = next(node.host for node in scene.nodes if node.name == names[0])
    try:
        opened = scene.probes[names[0]].call.remote(open_meeting, host)
        meeting = ray.get(opened, timeout=min(CLOCK_S, scene.deadline.left_s))
    except RayError as error:
        return Unknown(f"{names[0]}: {one_line(error)}")

    def join(node: Living, probe: Any) -> Any:
        if node.name not in names:
            return None
        return probe.call.remote(sum_over_nodes, Ring(names.index(node.name), len(names), meeting, backend))

    told = scene.answers(scene.ask(SUM_S, join))
    broken = [f"{name}: {answer.reason}" for name, answer in told.items() if isinstance(answer, Unknown)]
    if broken:
        return Unknown("; ".join(broken))
    slowest: AllReduce = max(told.values(), key=lambda sum_: sum_.seconds)
    return slowest


def shared_by_all(scene: Scene, url: str, settings: StorageSettings, name: str) -> dict[str, StoreFinding]:
    """Nodes that do not see what the head writes at a path."""
    left = scene.of_head(STORE_S, leave_marker, url, settings, name)
    if isinstance(left, Unknown):
        return {}  # the head's own write has told why
    seen = scene.answers(scene.ask(STORE_S, lambda node, probe: probe.call.remote(sees_marker, url, settings, name)))
    scene.of_head(STORE_S, remove_marker, url, settings, name)
    return {name: found for name, found in seen.items() if found is not None and not isinstance(found, StoreSpeed)}
