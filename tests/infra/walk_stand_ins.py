"""What a walk through infra/README.md cannot have here: the `aws` command, and a head that has booted.

`aws` makes the same calls by botocore; its Session Manager tunnel leads to the job server below instead of an instance.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fake_programs import TESTS

AWS = '''#!{python}
"""aws SERVICE COMMAND --some-option VALUE ..."""
import re, socket, sys
import botocore.session

words = [word.split("=", 1) if word.startswith("--") else [word] for word in sys.argv[1:]]
service, command, *rest = [part for word in words for part in word]
if command == "start-session":
    local = int(re.search(r"localPortNumber=(\\d+)", " ".join(rest))[1])
    sys.path.insert(0, {tests!r})
    from tunnels import forward

    forward(socket.create_server(("127.0.0.1", local)), "127.0.0.1", {port})
given = {{option.removeprefix("--").replace("-", "").lower(): value for option, value in zip(rest[::2], rest[1::2])}}
client = botocore.session.Session().create_client(service, region_name="us-east-1")
operation = command.replace("-", "_")
shape = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[operation]).input_shape
names = {{name.lower(): name for name in shape.members}}
getattr(client, operation)(**{{names[option]: value for option, value in given.items()}})
'''


def write_program(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)


def programs(folder: Path, port: int) -> Path:
    """A folder for PATH with `aws`, and `lexray` as it is installed."""
    folder.mkdir()
    write_program(folder / "aws", AWS.format(python=sys.executable, tests=TESTS, port=port))
    write_program(folder / "lexray", f'#!/bin/sh\nexec {sys.executable} -m lexray "$@"\n')
    return folder


class Head:
    """The dashboard of a head on loopback: takes jobs, which run until `finish`."""

    def __init__(self, token: str) -> None:
        self.jobs: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                known = self.headers.get("Authorization") == f"Bearer {token}"
                status, answer = outer._answer(self.command, self.path, body) if known else (401, None)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            do_GET = do_POST = do_PUT = _serve

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def finish(self) -> None:
        for job in self.jobs:
            job["status"] = "SUCCEEDED"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        match method, path.split("?")[0]:
            case "GET", "/api/version":
                return 200, {"version": "4", "ray_version": "2.60.0"}
            case "GET", "/api/v0/nodes":
                return 200, {"data": {"result": {"result": []}}}
            case "GET", "/api/jobs/":
                return 200, self.jobs
            case "POST", "/api/jobs/":
                sent = json.loads(body)
                self.jobs.append({**sent, "status": "RUNNING", "start_time": 1000 * (1 + len(self.jobs))})
                return 200, {"submission_id": sent["submission_id"]}
            case "PUT", _:
                return 200, None
        return 404, None
