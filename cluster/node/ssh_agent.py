"""Runs on a host for `lexray up` and `lexray down` over ssh; with `ray_keeper` it needs no lexray there."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lexray.cluster.node.ray_keeper import (
    FAILED,
    IS_KEPT,
    LOOK_S,
    STARTED,
    NodeError,
    end,
    keep,
    read_run,
    running,
)

START_S = 120.0
"""Seconds that Ray may take to start."""


def answer(request: dict[str, Any]) -> None:
    """Do what `lexray up` or `lexray down` requests; print a JSON object as the last line, a refusal as its `error`."""
    try:
        found = {"look": look, "start": start, "stop": stop}[request["do"]](request)
    except (NodeError, OSError) as error:
        found = {"error": " ".join(str(error).split())}
    print("\n" + json.dumps(found), flush=True)


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Return this machine's address and versions, which head the Ray here belongs to, and which `ports` others have."""
    address = request["address"] or own_address()
    folder = _folder(request["cluster"], address)
    run = running(folder)
    try:
        ray: str | None = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        ray = None
    return {
        "address": address,
        "python": platform.python_version(),
        "ray": ray,
        "head": run and run["head"],
        "token_file": str(folder / "token"),
        "taken": [port for port in request["ports"] if run is None and is_taken(port)],
    }


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Start Ray with `arguments`, unless it runs here for this `head` already; None starts a head.

    Returns the head's id and the cluster's token, both of which a head makes.
    """
    folder = _folder(request["cluster"], request["address"])
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    run = running(folder)
    if run and request["head"] not in (None, run["head"]):
        end(folder)  # it belongs to an earlier head
        run = None
    token = request["token"] or _made_token(folder / "token")
    if run is None:
        run = {"head": request["head"] or secrets.token_hex(8)}
        env = {**request["env"], "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        (folder / "ray.log").unlink(missing_ok=True)
        keeper = os.fork()
        if keeper == 0:
            _become_keeper(folder, run, request, env)
        _await_start(folder, keeper)
    return {"head": run["head"], "token": token}


def stop(request: dict[str, Any]) -> dict[str, Any]:
    """End Ray, if it runs, and remove what was kept of it."""
    folder = _folder(request["cluster"], request["address"] or own_address())
    was_running = end(folder)
    with suppress(OSError, ValueError):
        shutil.rmtree(read_run(folder)["files"], ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    return {"stopped": was_running}


def own_address() -> str:
    """Return the address at which ssh reached this machine."""
    address = os.environ["SSH_CONNECTION"].split()[2]
    if address.startswith("127.") or address == "::1":
        raise NodeError(f"ssh reaches this host at {address}, where the others do not: give its `address`")
    return address


def is_taken(port: int) -> bool:
    """Return whether another program listens at this port, at any address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended take no port
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _become_keeper(folder: Path, run: dict[str, Any], request: dict[str, Any], env: dict[str, str]) -> None:
    """Run as the keeper in a child process, detached from the ssh session. Never returns."""
    why = FAILED
    try:
        os.setsid()
        with open(folder / "ray.log", "a") as log, open(os.devnull) as nothing:
            for number, file in enumerate((nothing, log, log)):
                os.dup2(file.fileno(), number)
            why = keep(folder, run, request["temp_dir"], request["arguments"], env, log)
    except Exception as error:
        print(error, file=sys.stderr, flush=True)  # into the log
    finally:
        os._exit(why)


def _await_start(folder: Path, keeper: int) -> None:
    """Wait until Ray has started. Raises NodeError with Ray's last line if it ends instead."""
    until_s = time.monotonic() + START_S
    while STARTED not in (text := _text(folder / "ray.log")):
        pid, status = os.waitpid(keeper, os.WNOHANG)
        if pid and os.WEXITSTATUS(status) == IS_KEPT:
            raise NodeError("another `lexray up` is starting Ray there just now; run it again")
        if pid or time.monotonic() > until_s:
            if not pid:
                os.kill(keeper, signal.SIGTERM)
            lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it says nothing"]
            raise NodeError(f"Ray does not start: {lines[-1]}")
        time.sleep(LOOK_S)


def _made_token(file: Path) -> str:
    """Return the token in this file of the user's alone; it is made on first use."""
    with suppress(FileExistsError), os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
        new.write(secrets.token_hex(32))
    return file.read_text()


def _folder(cluster: str, address: str) -> Path:
    """Return the state folder of a node: by address, since hosts may share a home folder."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "lexray" / "nodes" / cluster / address


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return ""
