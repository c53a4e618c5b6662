"""Measures traffic between nodes: a connection between each pair, then an all-reduce over all of them."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from lexray.cluster.doctor.findings import AllReduce
from lexray.tuning.ray_backend.meeting import Endpoint, join_meeting

CONNECT_TIMEOUT_S = 2.0
SUM_TIMEOUT_S = 8.0
"""Time limit in seconds of the rendezvous, and of each all-reduce."""
TENSOR_BYTES = 8 * 2**20
REPEATS = 3
_MOST_AT_ONCE = 32


class Ring(NamedTuple):
    """One rank's place in an all-reduce."""

    rank: int
    size: int
    meeting: Endpoint
    """Rendezvous address on rank 0."""
    backend: str
    """`gloo` or `nccl`."""


def open_door(host: str) -> Endpoint:
    """Listen at this node's address until the process ends."""
    listener = socket.create_server((host, 0), backlog=1024)
    threading.Thread(target=_greet, args=(listener,), daemon=True).start()
    return Endpoint(host, listener.getsockname()[1])


def _greet(listener: socket.socket) -> None:
    while True:
        listener.accept()[0].close()


def knock(doors: Mapping[str, Endpoint]) -> dict[str, str]:
    """Connect to every node; return the reasons of failed connections by node name."""

    def one(door: Endpoint) -> str:
        try:
            socket.create_connection(door, timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            return f"{door.host}:{door.port}: {error.strerror or error}"
        return ""

    with ThreadPoolExecutor(_MOST_AT_ONCE) as pool:
        answers = dict(zip(doors, pool.map(one, doors.values()), strict=True))
    return {name: why for name, why in answers.items() if why}


def sum_over_nodes(ring: Ring) -> AllReduce:
    """Time a few all-reduces and return the fastest, as seen by this rank. Raises RuntimeError if other ranks do not
    join.
    """
    from lexray.tuning.ray_backend.node_interface import use_interface_of_the_node

    use_interface_of_the_node()
    if ring.backend != "nccl":
        return AllReduce(backend=ring.backend, nodes=ring.size, bytes=TENSOR_BYTES, seconds=_fastest(ring, "cpu"))
    with tempfile.TemporaryDirectory(prefix="lexray-doctor-") as folder:
        log = Path(folder) / "nccl.log"
        os.environ.update(NCCL_DEBUG="INFO", NCCL_DEBUG_SUBSYS="INIT,NET", NCCL_DEBUG_FILE=str(log))
        seconds = _fastest(ring, "cuda:0")
        transport = transport_of(log.read_text().splitlines() if log.exists() else [])
    return AllReduce(backend="nccl", nodes=ring.size, bytes=TENSOR_BYTES, seconds=seconds, transport=transport)


def _fastest(ring: Ring, device: str) -> float:
    """Return the seconds of the fastest all-reduce, after one warm-up."""
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        ring.backend,
        store=join_meeting(ring.meeting, ring.rank, ring.size, SUM_TIMEOUT_S),
        rank=ring.rank,
        world_size=ring.size,
        timeout=timedelta(seconds=SUM_TIMEOUT_S),
    )
    try:
        tensor = torch.ones(TENSOR_BYTES // 4, device=device)
        return min([_timed(tensor) for _ in range(1 + REPEATS)][1:])
    finally:
        dist.destroy_process_group()


def _timed(tensor: Any) -> float:
    """Return the seconds of one all-reduce; MAX keeps the values, so that none overflows."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    began = time.perf_counter()
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def transport_of(lines: Iterable[str]) -> str | None:
    """Parse the transport between nodes from NCCL's log: `Socket`, `IB`, `AWS Libfabric`..."""
    for line in lines:
        found = re.search(r"Using network (.+?)\s*$", line)
        if found:
            return found[1]
    return None
