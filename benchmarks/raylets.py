"""A Ray cluster of this machine: `ray start` several times, each node at a loopback address of its own.

Nothing listens anywhere else. Nodes are ended by the ids of their processes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from lexray.cluster.jobs.job_client import JobClient
from lexray.cluster.provisioned.description import Liveness
from lexray.cluster.provisioned.http import Dashboard
from lexray.cluster.provisioned.tokens import Secret
from lexray.cluster.ray_backend.connect import PROCESS_ENV

BIN = Path(sys.executable).parent
START_S = 180.0
OBJECT_STORE_BYTES = 1536 * 2**20
WORKER = b"RayTrainWorker"
"""In the command lines of the processes that train."""


class Raylets:
    """A head, and the nodes that are added; with a token, and lexray's settings for lost nodes."""

    def __init__(
        self, folder: Path, *, head_cpus: int = 0, object_store_bytes: int = OBJECT_STORE_BYTES, programs: Path = BIN
    ) -> None:
        self._programs = programs
        """Folder of the `ray` and the `python` that nodes run."""
        self.object_store_bytes = object_store_bytes
        """Of each node."""
        self.token = uuid.uuid4().hex * 2
        self.token_file = folder / "token"
        self.token_file.write_text(f"{self.token}\n")
        self.temp = Path(tempfile.mkdtemp(prefix="lxb"))  # Ray makes sockets below it, whose paths must be short
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._hosts = iter(range(2, 250))
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        self._env = {
            **os.environ,
            **PROCESS_ENV,
            **Liveness().ray_env,
            **auth,
            "PATH": f"{programs}:{os.environ['PATH']}",
        }
        self._env.pop("RAY_ADDRESS", None)
        self.head = self._next_host()
        gcs, dashboard, client = free_ports(self.head, 3)
        self.gcs = f"{self.head}:{gcs}"
        self.dashboard = f"http://{self.head}:{dashboard}"
        self._start(
            "head", self.head, "--head", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--num-cpus={head_cpus}",
            f"--dashboard-host={self.head}", f"--ray-client-server-port={client}",
        )  # fmt: skip
        wait_until(self._answers, "the head", START_S)

    @property
    def target(self) -> tuple[str, ...]:
        """Options of lexray's commands."""
        return ("--address", self.dashboard, "--token-file", str(self.token_file))

    @property
    def num_nodes(self) -> int:
        """Without the head."""
        return len(self._nodes) - 1

    def add(self, name: str, cpus: int) -> None:
        """One node more; it may take some seconds until the cluster knows it."""
        self._start(name, self._next_host(), f"--address={self.gcs}", f"--num-cpus={cpus}")

    def await_nodes(self) -> None:
        """Until the cluster knows all of its nodes: its dashboard answers before."""
        client = JobClient(Dashboard(url=self.dashboard, what="head", token=Secret(self.token)))
        wait_until(lambda: len(client.nodes()) > self.num_nodes, "all nodes", START_S)

    def trains(self, name: str) -> bool:
        """Return whether a worker of a trial is on the node."""
        return any(WORKER in _command_line(pid) for pid in _descendants(self._nodes[name].pid))

    def pids(self, name: str = "") -> list[int]:
        """Everything of one node, or of all: its folder stands in their command lines or environments.

        Those that have given themselves another name are missing; they end with their node.
        """
        return _pids_with(f"{self.temp / name}/".encode())

    def kill(self, name: str) -> None:
        """SIGKILL to everything of the node."""
        process = self._nodes.pop(name)
        for _ in range(3):  # whoever was started meanwhile
            for pid in [process.pid, *_descendants(process.pid), *self.pids(name)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            if not self.pids(name):
                return
            time.sleep(0.2)

    def close(self) -> None:
        for name in reversed(list(self._nodes)):
            self.kill(name)
        shutil.rmtree(self.temp, ignore_errors=True)

    def _start(self, name: str, host: str, *words: str) -> None:
        agent, agent_grpc, metrics = free_ports(host, 3)
        command = [
            str(self._programs / "ray"), "start", "--block", "--disable-usage-stats", f"--node-ip-address={host}",
            f"--temp-dir={self.temp / name}", f"--object-store-memory={self.object_store_bytes}", "--num-gpus=0",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--metrics-export-port={metrics}", *words,
        ]  # fmt: skip
        with (self.temp / f"{name}.log").open("wb") as out:
            self._nodes[name] = subprocess.Popen(
                command, env=self._env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _next_host(self) -> str:
        return f"127.0.0.{next(self._hosts)}"

    def _answers(self) -> bool:
        if self._nodes["head"].poll() is not None:
            raise RuntimeError(f"the head ended: {(self.temp / 'head.log').read_text()[-2000:]}")
        try:
            urlopen(f"{self.dashboard}/api/version", timeout=5).close()
        except HTTPError:
            return True  # it wants the token
        except OSError:
            return False
        return True


@contextmanager
def raylets(folder: Path) -> Iterator[Raylets]:
    """A cluster that is gone afterwards."""
    made = Raylets(folder)
    try:
        yield made
    finally:
        made.close()


def free_ports(host: str, count: int) -> list[int]:
    probes = [socket.create_server((host, 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float) -> float:
    """Seconds until it was so. Raises RuntimeError when it takes longer than `timeout_s`."""
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > timeout_s:
            raise RuntimeError(f"{what} did not come in {timeout_s:g} s")
        time.sleep(0.1)
    return time.monotonic() - began


def _pids_with(text: bytes) -> list[int]:
    """Processes, other than this one, that have it in their command line or environment."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal() and int(place.name) != os.getpid():
            with suppress(OSError):
                if text in (place / "cmdline").read_bytes() or text in (place / "environ").read_bytes():
                    found.append(int(place.name))
    return found


def _descendants(pid: int) -> list[int]:
    """Processes that it started, and those that these started."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            with suppress(OSError):
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(place.name))
    found, ahead = [], [pid]
    while ahead:
        some = children.get(ahead.pop(), [])
        found += some
        ahead += some
    return found


def _command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
