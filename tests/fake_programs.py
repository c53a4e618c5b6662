"""Stand-ins for `kubectl` and `aws` that really forward a port, and a dashboard to forward it to."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TESTS = str(Path(__file__).parent)
"""Where a stand-in finds what it does."""

FORWARDER = '''#!{python}
"""Forwards the local port of its arguments to a port of HOST; a child of its own does it, as the SSM plugin does."""
import json, os, re, socket, subprocess, sys

folder = {folder!r}
with open(os.path.join(folder, "calls.jsonl"), "a") as calls:
    calls.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
answers = json.load(open(os.path.join(folder, "answers.json")))
for word, (code, out, err) in answers.items():
    if word in sys.argv:
        sys.stdout.write(out), sys.stderr.write(err)
        sys.exit(code)
if "update-kubeconfig" in sys.argv:
    open(sys.argv[sys.argv.index("--kubeconfig") + 1], "w").write("credentials")
    sys.exit(0)
found = re.search(r"localPortNumber=(\\d+)|(\\d+):\\d+", " ".join(sys.argv))
local = int(found[1] or found[2])
if "--child" not in sys.argv:
    child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--child"])
    open(os.path.join(folder, "pids"), "a").write("%d %d\\n" % (os.getpid(), child.pid))
    sys.exit(child.wait())

sys.path.insert(0, {tests!r})
from tunnels import forward

forward(socket.create_server(("127.0.0.1", local)), {host!r}, {port})
'''


class Programs:
    """What was called, with which arguments; the processes that forward."""

    def __init__(self, folder: Path, port: int, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.answer({})
        for name in ("kubectl", "aws"):
            script = self.bin / name
            values = {"folder": str(folder), "name": name, "host": host, "port": port}
            script.write_text(FORWARDER.format(python=sys.executable, tests=TESTS, **values))
            script.chmod(0o755)

    def answer(self, answers: dict[str, tuple[int, str, str]]) -> None:
        """Exit code, stdout and stderr of calls that have this word."""
        (self.folder / "answers.json").write_text(json.dumps(answers))

    def calls(self) -> list[list[str]]:
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [call for line in lines if "--child" not in (call := json.loads(line))]

    def pids(self) -> list[int]:
        """Of the forwarding processes, parents and children, the newest last."""
        place = self.folder / "pids"
        return [int(pid) for pid in place.read_text().split()] if place.exists() else []

    def living(self) -> list[int]:
        return [pid for pid in self.pids() if _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


class ADashboard:
    """An HTTP server on loopback that answers as told: `routes` from path to status and body."""

    def __init__(self, token: str | None = None, port: int = 0) -> None:
        self.routes: dict[str, Callable[[], tuple[int, str]]] = {
            "/api/version": lambda: (200, json.dumps({"version": "4", "ray_version": "2.60.0"}))
        }
        self.fallback: Callable[[str], tuple[int, str]] = lambda path: (404, "no such path")
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        """Of the requests that were seen."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                outer.seen.append((self.command, self.path, dict(self.headers)))
                outer.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
                given = self.headers.get("Authorization")
                if token is not None and given != f"Bearer {token}":
                    status, body = (401, "Unauthorized") if given is None else (403, "Forbidden")
                else:
                    status, body = outer.answer(self.path)
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", body)
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_POST = do_PUT = _serve

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, path: str) -> tuple[int, str]:
        route = self.routes.get(path)
        return route() if route is not None else self.fallback(path)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def on_path(programs: Programs) -> str:
    """PATH with the stand-ins first."""
    return f"{programs.bin}:{os.environ['PATH']}"
