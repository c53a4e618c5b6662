"""A Ray cluster of machines that are network namespaces of this one: a node can be killed, cut off, and added back.

Needs root and iproute2. Each node is a process group of its own `ray start`, with an address of its own behind a bridge
that nothing but this machine reaches.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lexray.cluster.ray_backend.connect import PROCESS_ENV
from lexray.storage.objects.options import INSECURE

GCS_PORT, DASHBOARD_PORT, S3_PORT = 6379, 8265, 5005
START_S = 90.0
RAY = str(Path(sys.executable).parent / "ray")

# Small enough that a lost node is noticed in seconds; a busy machine must not be taken for a dead one all the same.
TEST_LIVENESS = {
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_grpc_keepalive_time_ms": "5000",
    "RAY_grpc_keepalive_timeout_ms": "5000",
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
}


def why_not() -> str:
    """Why there can be no namespaces here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2 (`ip`)"
    tried = subprocess.run(["ip", "netns", "add", f"lxtry{os.getpid()}"], capture_output=True, text=True)
    if tried.returncode:
        return f"network namespaces cannot be made here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", f"lxtry{os.getpid()}"], check=True)
    return ""


class Machines:
    """Network namespaces on one bridge; the test itself has the bridge's first address."""

    _numbers = itertools.count(os.getpid() % 200)

    def __init__(self, place: Path, env: Mapping[str, str]) -> None:
        self.place, self.number = place, next(self._numbers) % 200 + 20
        self.token = uuid.uuid4().hex * 2
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        path = {"PATH": f"{Path(RAY).parent}:{os.environ['PATH']}"}  # a job's `python` is the head's
        self.env = {**os.environ, **path, **PROCESS_ENV, **TEST_LIVENESS, **auth, "OMP_NUM_THREADS": "1", **env}
        self.temp = Path(tempfile.mkdtemp(prefix="lx"))  # Ray makes sockets below it, whose paths must be short
        self.bridge = f"lxbr{self.number}"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._hosts = itertools.count(2)
        self.addresses: dict[str, str] = {}
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"10.83.{self.number}.1/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def machine(self, name: str) -> str:
        """A new machine with this name; its address."""
        space, link, host = self.space(name), f"lx{self.number}{name}"[:15], next(self._hosts)
        address = f"10.83.{self.number}.{host}"
        _ip("netns", "add", space)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", link, "master", self.bridge, "up")
        for command in (("lo", "up"), ("eth0", "up")):
            _ip("-n", space, "link", "set", *command)
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        self.addresses[name] = address
        return address

    def run(self, name: str, command: Sequence[str], **env: str) -> subprocess.Popen[bytes]:
        """Start a command on a machine, in a process group of its own."""
        with open(self.place / f"{name}.log", "ab") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.space(name), *command],
                env={**self.env, **env},
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def start(self, name: str, command: Sequence[str], **env: str) -> None:
        """A service of the machine, which lives as long as the machine."""
        self._running[name] = self.run(name, command, **env)

    def start_head(self, name: str = "head") -> str:
        """A head without work; its address."""
        address = self.machine(name)
        self.start(
            name,
            [
                *_ray_start(self.temp / name, address),
                "--head", f"--port={GCS_PORT}", "--num-cpus=0", "--include-dashboard=true",
                f"--dashboard-host={address}", f"--dashboard-port={DASHBOARD_PORT}",
            ],
        )  # fmt: skip
        wait_until(lambda: answers(address, DASHBOARD_PORT) and answers(address, GCS_PORT), f"the head {name}")
        return address

    def start_worker(self, name: str, cpus: int, head: str = "head", **env: str) -> None:
        """A worker node with so many CPUs, as Ray counts."""
        address = self.machine(name)
        command = [*_ray_start(self.temp / name, address), f"--address={self.addresses[head]}:{GCS_PORT}"]
        self.start(name, [*command, f"--num-cpus={cpus}"], **env)
        wait_until(lambda: address in self.alive(head), f"the node {name}")

    def alive(self, head: str = "head") -> list[str]:
        """Addresses of the nodes that the head takes to be alive."""
        return [node["node_ip"] for node in self.listed("nodes", head) if node["state"] == "ALIVE"]

    def on_nodes(self, actor: str, head: str = "head") -> dict[str, int]:
        """How many living actors of a class each machine has, by name; those without any are left out."""
        names = {address: name for name, address in self.addresses.items()}
        machine = {node["node_id"]: names[node["node_ip"]] for node in self.listed("nodes", head)}
        found = [a for a in self.listed("actors", head) if a["state"] == "ALIVE" and a["class_name"] == actor]
        return dict(Counter(machine[a["node_id"]] for a in found if a["node_id"] in machine))

    def drain(self, name: str, deadline_s: int, head: str = "head") -> None:
        """Tell Ray, as whoever takes machines away does, that this one goes in so many seconds."""
        address = self.addresses[name]
        node = next(node for node in self.listed("nodes", head) if node["node_ip"] == address)
        done = subprocess.run(
            [
                RAY, "drain-node", f"--address={self.addresses[head]}:{GCS_PORT}", f"--node-id={node['node_id']}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test",
                f"--deadline-remaining-seconds={deadline_s}",
            ],
            env=self.env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def listed(self, what: str, head: str = "head") -> list[dict[str, Any]]:
        """What the head knows of its `nodes` or `actors`; a busy dashboard may drop a request or two."""
        url = f"http://{self.addresses[head]}:{DASHBOARD_PORT}/api/v0/{what}?detail=1&limit=1000"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"})
        found: list[dict[str, Any]] = []

        def has_answered() -> bool:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    found[:] = json.loads(answer.read())["data"]["result"]["result"]
            except OSError:
                return False
            return True

        wait_until(has_answered, f"the {what}")
        return found

    def start_s3(self, name: str = "s3") -> str:
        """An S3 server; its url."""
        address = self.machine(name)
        self.start(name, [sys.executable, "-m", "moto.server", "-H", address, "-p", str(S3_PORT)])
        wait_until(lambda: answers(address, S3_PORT), "the S3 server")
        return f"http://{address}:{S3_PORT}"

    def kill(self, name: str) -> None:
        """SIGKILL to everything that runs on the machine."""
        found = subprocess.run(["ip", "netns", "pids", self.space(name)], capture_output=True, text=True)
        for pid in found.stdout.split():
            _send(int(pid), signal.SIGKILL)
        if name in self._running:
            self._running.pop(name).wait()

    def cut(self, name: str) -> None:
        """Nothing comes from the machine or reaches it any more; what runs there does not know."""
        _ip("link", "set", f"lx{self.number}{name}"[:15], "down")

    def cut_from(self, name: str, others: Sequence[str]) -> None:
        """The machine and these others hear no more of each other; it reaches the rest as before."""
        for other in others:
            _ip("-n", self.space(name), "route", "add", "blackhole", f"{self.addresses[other]}/32")

    def said(self, name: str) -> str:
        """What workers on a machine have written into their logs."""
        logs = (self.temp / name).glob("session_*/logs/worker*.err")
        return "".join(file.read_text(errors="replace") for file in logs)

    def close(self) -> None:
        for name in self.addresses:
            self.kill(name)
            _ip("netns", "del", self.space(name), check=False)
        _ip("link", "del", self.bridge, check=False)
        shutil.rmtree(self.temp, ignore_errors=True)

    def space(self, name: str) -> str:
        """Name of the network namespace that a machine is."""
        return f"lx{self.number}-{name}"


@contextmanager
def machines(place: Path, **env: str) -> Iterator[Machines]:
    """Namespaces that are gone afterwards, with all that ran in them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(INSECURE, "1")  # their S3 server is unencrypted, and on another address
        made = Machines(place, env)
        try:
            yield made
        finally:
            made.close()


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float = START_S) -> float:
    """Seconds until it was so; a busy machine may take long, a broken one must not take for ever."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < timeout_s, f"{what} did not come in {timeout_s:g} s"
        time.sleep(0.2)
    return time.monotonic() - began


def answers(address: str, port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((address, port)) == 0


def _ray_start(temp: Path, address: str) -> list[str]:
    return [
        RAY, "start", "--block", f"--node-ip-address={address}", f"--temp-dir={temp}",
        f"--object-store-memory={256 * 2**20}", "--disable-usage-stats",
    ]  # fmt: skip


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert not check or done.returncode == 0, (arguments, done.stderr)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
