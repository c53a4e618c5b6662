"""A store gone bad: an HTTP proxy on loopback in front of a real S3 server, which spoils the answers it is told to."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

BLOCK_BYTES = 64 * 1024
NO_LINGER = struct.pack("ii", 1, 0)
"""Closing a socket with it sends a reset."""


class Request(NamedTuple):
    """What a fault may depend on."""

    number: int
    """Counted from 1 over all connections."""
    method: str
    path: str
    """With the query."""
    headers: dict[str, str]
    """By names in lower case."""


@dataclass(frozen=True)
class Refusal:
    """An error in S3's words, instead of the answer."""

    status: int
    code: str
    message: str = "told to"


class Reset:
    """The connection breaks off before the answer."""


class Cut:
    """The answer breaks off in its middle, after headers that promise all of it."""


class Lost:
    """The request is carried out, but its answer is a reset."""


class Flip:
    """One bit of the answer is another."""


class Whole:
    """The wanted range is ignored: the whole object comes."""


Fault = Refusal | Reset | Cut | Lost | Flip | Whole | None
Decide = Callable[[Request], Fault]


def first(count: int, fault: Fault) -> Decide:
    """The fault for the first `count` requests."""
    return lambda request: fault if request.number <= count else None


def unlucky(fault: Fault, *, share: float, times: int = 2) -> Decide:
    """The fault for this share of all different requests, each of them the first `times` that it comes.

    Which ones is told by the object's own name and range alone: a folder of another name has the same luck.
    """
    seen: Counter[str] = Counter()

    def decide(request: Request) -> Fault:
        name = f"{request.method} {request.path.rsplit('/', 1)[-1]} {request.headers.get('range')}"
        seen[name] += 1
        return fault if zlib.crc32(name.encode()) % 1000 < share * 1000 and seen[name] <= times else None

    return decide


class FaultyServer(ThreadingHTTPServer):
    """Passes requests on to `target` unless `decide` says otherwise."""

    daemon_threads = True

    def __init__(self, target: str, decide: Decide, bytes_per_s: float | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.decide = decide
        self.bytes_per_s = bytes_per_s
        self.requests: list[Request] = []
        self.faults = 0
        self.most_at_once = 0
        self._at_once = 0
        self._sent_at = time.monotonic()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def judge(self, method: str, path: str, headers: dict[str, str]) -> Fault:
        with self._lock:
            request = Request(len(self.requests) + 1, method, path, headers)
            self.requests.append(request)
        fault = self.decide(request)
        with self._lock:
            self.faults += fault is not None
        return fault

    @contextmanager
    def counted(self) -> Iterator[None]:
        """One more request in flight."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def wait_for_turn(self, num_bytes: int) -> None:
        """Sleep until these bytes may be sent, all connections together."""
        if self.bytes_per_s is None:
            return
        with self._lock:
            self._sent_at = max(self._sent_at, time.monotonic()) + num_bytes / self.bytes_per_s
            pause_s = self._sent_at - time.monotonic()
        time.sleep(max(0.0, pause_s))

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news."""


@contextmanager
def faulty_server(
    target: str, decide: Decide = lambda request: None, *, bytes_per_s: float | None = None
) -> Iterator[FaultyServer]:
    """The proxy, running until the end of the block."""
    with FaultyServer(target, decide, bytes_per_s) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.counted():
            fault = self.server.judge(self.command, self.path, headers)
            if isinstance(fault, Reset):
                self._reset()
            elif isinstance(fault, Refusal):
                self._refuse(fault)
            else:
                self._pass_on(body, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    def _pass_on(self, body: bytes, fault: Fault) -> None:
        upstream = http.client.HTTPConnection(self.server.target, timeout=60)
        headers = {
            name: value for name, value in self.headers.items() if not (isinstance(fault, Whole) and name == "Range")
        }
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if isinstance(fault, Lost):
            self._reset()
            return
        if isinstance(fault, Flip) and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(data)))
        self.end_headers()
        self._send(data[: len(data) // 2] if isinstance(fault, Cut) else data)
        if isinstance(fault, Cut):
            self.close_connection = True

    def _send(self, data: bytes) -> None:
        for start in range(0, len(data), BLOCK_BYTES):
            block = data[start : start + BLOCK_BYTES]
            self.server.wait_for_turn(len(block))
            self.wfile.write(block)

    def _refuse(self, fault: Refusal) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>"
        data = b"" if self.command == "HEAD" else text.encode()
        self.send_response(fault.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
