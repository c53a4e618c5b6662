"""A tunnel: an external program that forwards a loopback port to a cluster's head while it is open."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

import psutil

from lexray.cluster.provisioned.programs import missing
from lexray.storage.errors import UserError, last_line
from lexray.storage.polling import poll

log = logging.getLogger("lexray")

READY_S = 30.0
"""Seconds that a tunnel may take to open."""
LOOK_S = 0.1
RESTARTS_S = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before each attempt to reopen a broken tunnel; the last one repeats."""
PORTS_TRIED = 5
"""Attempts to open a tunnel: another program may take the free port first."""
ACCEPT_S = 5.0
"""Seconds that a program may take to accept a connection."""
GRACE_S = 3.0
"""Seconds between SIGTERM and SIGKILL."""


@dataclass(kw_only=True)
class Tunnel:
    """A forwarding program in its own process group; restarted when it dies, until `close`."""

    command: Callable[[int], list[str]]
    """Returns the command for a local port. Called for each start: the head may have moved to another machine."""
    what: str
    """The tunnel's target, for messages."""
    ready_s: float = READY_S
    port: int = field(init=False)
    """Port on 127.0.0.1; only the program's own while the tunnel is open, see `has_accepted`."""
    _is_open: bool = False
    _process: subprocess.Popen[bytes] | None = None
    _complaints: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    _closed: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    def open(self) -> None:
        """Start the program and wait until it listens. Raises UserError with its error."""
        for attempt in range(PORTS_TRIED):
            self.port = free_port()
            self._start()
            try:
                self._await_port()
                break
            except UserError:
                _end(self._process)
                if attempt + 1 == PORTS_TRIED or not is_taken(self.port):
                    raise
        self._thread = threading.Thread(target=self._watch, name="tunnel", daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """Terminate a tunnel that passes no traffic; it is reopened in the background. One that is opening is left
        alone.
        """
        with self._lock:
            if self._is_open:
                self._is_open = False
                _end(self._process)

    def has_accepted(self, port: int) -> bool:
        """Return whether the program holds the other end of a connection from this local port to the tunnel's.

        While a tunnel is down, any user of this machine may listen on its port.
        """

        def is_there() -> bool:
            ours = (one for one in self._sockets() if one.laddr.port == self.port)
            return any(one.raddr and one.raddr.port == port for one in ours)

        return poll(is_there, every_s=LOOK_S / 10, at_most_s=ACCEPT_S)

    def close(self) -> None:
        """End the program and everything that it started."""
        self._closed.set()
        with self._lock:
            _end(self._process)
        if self._thread is not None:
            self._thread.join()
        self._complaints.close()

    def _start(self) -> None:
        command = self.command(self.port)
        with self._lock:
            if self._closed.is_set():
                return
            self._complaints.seek(0)
            self._complaints.truncate()
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._complaints,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise missing(command[0]) from error

    def _await_port(self) -> None:
        assert self._process is not None
        until_s = time.monotonic() + self.ready_s
        while not self._listens():
            if self._process.poll() is not None:
                raise UserError(f"tunnel to {self.what}: {self._complaint()}")
            if time.monotonic() >= until_s:
                raise UserError(f"tunnel to {self.what}: not open after {self.ready_s:.0f} s ({self._complaint()})")
            time.sleep(LOOK_S)
        self._is_open = True

    def _listens(self) -> bool:
        return any(one.laddr.port == self.port and one.status == psutil.CONN_LISTEN for one in self._sockets())

    def _sockets(self) -> list[Any]:
        """Return the network sockets of the program and its descendants."""
        if self._process is None:
            return []
        try:
            parent = psutil.Process(self._process.pid)
            family = [parent, *parent.children(recursive=True)]
        except psutil.Error:
            return []
        found = []
        for process in family:
            with suppress(psutil.Error):  # it ended meanwhile
                found += [one for one in process.net_connections("inet") if one.laddr]
        return found

    def _complaint(self) -> str:
        self._complaints.seek(0)
        said = last_line(self._complaints.read().decode(errors="replace"))
        code = self._process.poll() if self._process is not None else None
        return said or ("it says nothing" if code is None else f"it ended with exit code {code} and without a word")

    def _watch(self) -> None:
        attempt = 0
        while not self._closed.wait(LOOK_S):
            assert self._process is not None
            if self._process.poll() is None:
                continue
            log.warning("the tunnel to %s broke (%s); opening it anew", self.what, self._complaint())
            if self._closed.wait(RESTARTS_S[min(attempt, len(RESTARTS_S) - 1)]):
                return
            attempt += 1
            with suppress(UserError):  # said by the warning of the next round
                self._start()
                self._await_port()
                attempt = 0


@contextmanager
def opened(tunnel: Tunnel) -> Iterator[Tunnel]:
    """Keep a tunnel open within the context."""
    try:
        tunnel.open()
        yield tunnel
    finally:
        tunnel.close()


def free_port() -> int:
    """Return a loopback port that is currently free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_taken(port: int) -> bool:
    """Return whether another program listens on a loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended take no port
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):  # SIGKILL is for children that ignore SIGTERM
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    until_s = time.monotonic() + GRACE_S
    with suppress(ProcessLookupError):
        while time.monotonic() < until_s:
            os.killpg(process.pid, 0)
            time.sleep(LOOK_S / 10)
