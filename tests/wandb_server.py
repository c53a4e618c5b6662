"""A server of W&B's for one process: what `wandb` asks of it to run online, and what it keeps of each run.

It may be bad: answer 429 to everything, hang, or be gone. What it took before stays, as with the real one.
"""

import gzip
import json
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

KEY = "a" * 40
"""Accepted by `wandb` as an API key."""

SOMEONE = {"id": "user", "entity": "someone", "username": "someone", "email": "", "flags": "{}", "teams": {"edges": []}}

Mood = Literal["well", "limiting", "hanging"]


@dataclass
class KeptRun:
    """A run as the server has it."""

    attributes: dict[str, Any] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    """Lines as sent, by their place."""
    completions: int = 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history without what W&B adds."""
        return [{k: v for k, v in json.loads(line).items() if not k.startswith("_")} for line in self.history]

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in map(json.loads, self.history)]


@dataclass
class WandbServer:
    """Runs by id, and how the server feels."""

    mood: Mood = "well"
    runs: dict[str, KeptRun] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    """Ids of runs that it does not take, as with those that were deleted there."""
    asked: Counter[str] = field(default_factory=Counter)
    """Requests by kind, refused ones too."""
    released: threading.Event = field(default_factory=threading.Event)
    """Lets go of requests that hang."""
    url: str = ""
    _server: ThreadingHTTPServer | None = None

    @property
    def is_dead(self) -> bool:
        return self._server is None

    def open(self) -> None:
        """Listen on loopback; at the same place as before, after `die`."""
        self.released.clear()
        port = int(self.url.rsplit(":", 1)[1]) if self.url else 0
        handler = type("Handler", (_Handler,), {"kept": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def die(self) -> None:
        """Take no more connections, and answer none that are open."""
        self.mood = "hanging"
        self.released.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What GraphQL answers to the operations that `wandb` needs; nothing to others."""
        name = query.split("(")[0].split("{")[0].split()[1]
        self.asked[name] += 1
        if name == "RunResumeStatus":
            return {"model": self._resume(variables["name"])}
        if name == "UpsertBucket":
            return {"upsertBucket": {"bucket": self._upsert(variables), "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload"} for file in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        return self._artifact(name, variables) or {"viewer": SOMEONE}

    def _artifact(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Tables of a run are artifacts: taken, and thrown away."""
        upload = {"uploadUrl": f"{self.url}/upload", "uploadHeaders": []}
        manifest = {"id": "manifest", "file": {"id": "file", "name": "manifest", "displayName": "manifest", **upload}}
        if name == "ArtifactType":
            return {"project": {"artifact": None}}
        if name == "CreateArtifact":
            made = {
                "id": "artifact",
                "state": "PENDING",
                "artifactSequence": {"id": "sequence", "latestArtifact": None},
            }
            return {"createArtifact": {"artifact": made}}
        if name in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            return {name[0].lower() + name[1:]: {"artifactManifest": manifest}}
        if name == "CreateArtifactFiles":
            paths = [file["name"] for file in variables["input"]["artifactFiles"]]
            nodes = [{"storagePath": path, "artifact": {"id": "artifact"}, **upload} for path in paths]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if name == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": "artifact", "digest": "digest"}}}
        return {}

    def stream(self, run_id: str, content: dict[str, Any]) -> None:
        """Take a part of a run's history."""
        self.asked["file_stream"] += 1
        run = self.runs.setdefault(run_id, KeptRun())
        sent = content.get("files", {}).get("wandb-history.jsonl")
        if sent is not None:
            run.history[sent["offset"] : sent["offset"] + len(sent["content"])] = sent["content"]
        run.completions += bool(content.get("complete"))

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(variables["name"], KeptRun())
        run.attributes |= {name: value for name, value in variables.items() if value is not None}
        return self._bucket(variables["name"]) | {
            "project": {"id": "project", "name": variables["project"], "entity": {"id": "entity", "name": "someone"}}
        }

    def _bucket(self, run_id: str) -> dict[str, Any]:
        about = self.runs[run_id].attributes
        return {
            "id": f"id-{run_id}",
            "name": run_id,
            "displayName": about.get("displayName", run_id),
            "description": "",
            "config": about.get("config", "{}"),
            "sweepName": None,
            "historyLineCount": len(self.runs[run_id].history),
        }

    def _resume(self, run_id: str) -> dict[str, Any] | None:
        if run_id not in self.runs:
            return None
        history = self.runs[run_id].history
        bucket = self._bucket(run_id) | {
            "summaryMetrics": history[-1] if history else "{}",
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": "[]",
            "tags": [],
            "notes": None,
            "wandbConfig": '{"t": 1}',
        }
        return {"id": "project", "name": "project", "entity": {"id": "entity", "name": "someone"}, "bucket": bucket}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kept: WandbServer

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._is_refused():
            return
        if self.path == "/graphql":
            asked = json.loads(body)
            variables = asked.get("variables") or {}
            if "UpsertBucket" in asked["query"] and variables.get("name") in self.kept.refused:
                self._reply({"errors": [{"message": f"run {variables['name']} was deleted"}]}, status=400)
                return
            self._reply({"data": self.kept.answer(asked["query"], asked.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            self.kept.stream(self.path.split("/")[-2], json.loads(body))
            self._reply({})
        else:
            self._reply({})  # telemetry

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._is_refused():
            self._reply({})

    def do_GET(self) -> None:
        if not self._is_refused():
            self._reply({})

    def _is_refused(self) -> bool:
        if self.kept.mood == "limiting":
            self.kept.asked["429"] += 1
            self._reply({"errors": [{"message": "rate limit exceeded"}]}, status=429)
            return True
        if self.kept.mood == "hanging":
            self.kept.asked["hung"] += 1
            self.kept.released.wait()
            self.close_connection = True
            return True
        return False

    def _reply(self, content: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def wandb_server(mood: Mood = "well"):
    """A server that listens; gone at the end."""
    server = WandbServer(mood=mood)
    server.open()
    try:
        yield server
    finally:
        server.die()
