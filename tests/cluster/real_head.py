"""A head of Ray with a token, of its own ports and folder, on loopback; ended by the ids of its processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef0123456789abcdef"
START_S = 90.0


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class RealHead:
    """`ray start --head --block`; `address` of its dashboard."""

    def __init__(self, cpus: int = 3) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lxr"))  # short: Ray's sockets lie in it
        gcs, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
        self.address = f"http://127.0.0.1:{dashboard}"
        environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("RAY_ADDRESS", None)
        command = [
            str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
            f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--num-cpus={cpus}",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}",
            f"--temp-dir={self.folder}", "--object-store-memory=200000000", "--num-gpus=0",
        ]  # fmt: skip
        self._log = (self.folder / "start.log").open("wb")
        self._process = subprocess.Popen(
            command, env=environment, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._await()

    def _await(self) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            assert self._process.poll() is None, (self.folder / "start.log").read_text()
            try:
                urlopen(f"{self.address}/api/version", timeout=5).close()
            except HTTPError:
                return  # it wants the token
            except OSError:
                time.sleep(0.3)
            else:
                raise AssertionError("the token is not in force")
        raise AssertionError((self.folder / "start.log").read_text())

    def pids(self) -> list[int]:
        """Everything of this Ray: its folder stands in their command lines, or in those of their ancestors'."""
        mine = str(self.folder).encode()
        found = []
        for place in Path("/proc").iterdir():
            if place.name.isdecimal() and int(place.name) != os.getpid():
                with suppress(OSError):
                    if mine in (place / "cmdline").read_bytes() or mine in (place / "environ").read_bytes():
                        found.append(int(place.name))
        return found

    def kill(self) -> None:
        """As a machine that is gone."""
        for _ in range(3):
            for pid in [self._process.pid, *self.pids()]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            time.sleep(0.2)
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
