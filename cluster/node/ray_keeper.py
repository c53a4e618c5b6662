"""Keep Ray on one machine, below a process that ends everything that Ray started there.

Python's own library is enough: `lexray up` sends this file over ssh to the Python of a host. `ray stop` is never
called: it ends every Ray of the user on that machine, whoever started it.

The keeper adopts what Ray's processes leave behind (a "subreaper"), such as drivers of jobs, which have sessions of
their own. So whoever ends the keeper ends all of them and nothing else. It holds a lock as long as it lives: a process
id alone may be another program's by now.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

LOOK_S = 0.2
GRACE_S = 8.0
"""Seconds between SIGTERM to Ray and SIGKILL to what is left."""
STOP_S = 60.0
"""Seconds that the keeper may take to end everything."""
STARTS = 3
"""Attempts to start a Ray that gives up on itself, as it does on a busy machine."""
GIVES_UP_AFTER_S, GIVES_UP_BEFORE_S = 25.0, 100.0
"""Ray waits 30 s for its own node to join, which nothing sets, and takes some seconds before and after."""
STARTED = "Ray runtime started."
"""Output of `ray start` that marks success."""
STOPPED, FAILED, IS_KEPT = 0, 1, 3
"""Exit codes of a keeper: it received SIGTERM, Ray ended by itself, another keeper holds the folder."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class NodeError(Exception):
    """A one-line error for the user."""


def running(folder: Path) -> dict[str, Any] | None:
    """Return the record of the folder's running keeper; None if there is none."""
    with suppress(FileNotFoundError), open(folder / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return read_run(folder)
    return None


def end(folder: Path) -> bool:
    """End the keeper and wait for it; return whether there was one. Raises NodeError when it does not end."""
    run = running(folder)
    if run is None:
        return False
    os.kill(run["pid"], signal.SIGTERM)
    until_s = time.monotonic() + STOP_S
    while running(folder):
        if time.monotonic() > until_s:
            raise NodeError(f"process {run['pid']} and what it started have not ended in {STOP_S:.0f} s")
        time.sleep(LOOK_S)
    return True


def keep(
    folder: Path, run: dict[str, Any], temp_dir: str, arguments: list[str], env: dict[str, str], log: IO[str]
) -> int:
    """Run as the keeper of `folder`: run `ray start` until it ends or SIGTERM arrives, then end all processes below it.

    Ray's own files lie in `temp_dir`, which must be short, and are removed after SIGTERM. Otherwise
    its logs stay, and the next keeper removes them. Returns why it ended.
    """
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return IS_KEPT
        with suppress(OSError, ValueError):
            shutil.rmtree(read_run(folder)["files"], ignore_errors=True)
        files = tempfile.mkdtemp(prefix="lexray-", dir=temp_dir)
        text = json.dumps({**run, "pid": os.getpid(), "files": files})
        (folder / "run.new").write_text(text)
        (folder / "run.new").replace(folder / "run.json")
        why = _started(files, arguments, env, log)
        if why == STOPPED:
            shutil.rmtree(files, ignore_errors=True)
        return why


def _started(files: str, arguments: list[str], env: dict[str, str], log: IO[str]) -> int:
    """Run Ray to its end, again where it gave up waiting for itself to start."""
    for number in range(1, STARTS + 1):
        began_s = time.monotonic()
        why = _run_ray(files, arguments, env, log)
        if why == STOPPED or not GIVES_UP_AFTER_S < time.monotonic() - began_s < GIVES_UP_BEFORE_S:
            break
        print(f"lexray: Ray gave up on its start; attempt {number} of {STARTS}", file=log, flush=True)
    return why


def _run_ray(files: str, arguments: list[str], env: dict[str, str], log: IO[str]) -> int:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--temp-dir={files}"]
    if not any(argument.startswith("--num-cpus=") for argument in arguments):
        command.append(f"--num-cpus={len(os.sched_getaffinity(0))}")
    if "--head" in arguments:  # it cannot be switched off, and its own default is the same for everybody
        command.append(f"--ray-client-server-port={free_port()}")
    # A bash that finds SSH_CLIENT reads .bashrc, which may put another `python` first; Ray starts workers by bash.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), ours.get("PATH", os.defpath)])  # for `python` of jobs
    ray = subprocess.Popen(
        [*command, *arguments],
        env={**ours, "PATH": path, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", **env},
        cwd=files,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),  # should the keeper be killed
    )
    try:
        while not stops and ray.pid not in _reaped():
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        stops.append(signal.SIGINT)
    finally:
        _end_all(ray.pid)
    return STOPPED if stops else FAILED


def _end_all(ray: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(ray, signal.SIGTERM)
    until_s = time.monotonic() + GRACE_S
    while left := descendants(os.getpid()):
        for pid in left if time.monotonic() > until_s else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_S)
        _reaped()


def descendants(parent: int) -> list[int]:
    """Return the ids of all processes below this one."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, new = [], [parent]
    while new:
        new = [child for pid in new for child in children.get(pid, [])]
        found += new
    return found


def _reaped() -> list[int]:
    """Return ids of children and adopted orphans that have ended since the last call."""
    found = []
    with suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            found.append(pid)
    return found


def free_port() -> int:
    """Return a port that is currently free."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def read_run(folder: Path) -> dict[str, Any]:
    """Return the newest keeper's record: `pid`, `head`, `files`. Raises OSError if there is none."""
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found
