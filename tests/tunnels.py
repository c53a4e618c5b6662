"""A port that leads to another one: what stand-ins for tunnels, and a relay between machines, really do."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


def forward(server: socket.socket, host: str, port: int) -> None:
    """Each connection to `server` leads on to that port; never returns.

    Raises OSError when `server` is shut down, or nobody listens there.
    """
    while True:
        near, _ = server.accept()
        far = socket.create_connection((host, port))
        for pair in ((near, far), (far, near)):
            threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
