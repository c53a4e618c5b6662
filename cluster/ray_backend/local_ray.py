"""Starts a Ray on this machine that only this user can reach, whatever the permissions of the machine's folders.

On a shared host every user reaches loopback and `/tmp`. So Ray requires a token that only this user can read, keeps its
files in a folder that only this user can enter, and listens on loopback only.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from lexray.cluster.provisioned.description import Liveness
from lexray.cluster.ray_backend.internals import on_loopback, reread_token_settings
from lexray.storage.errors import UserError, last_line, one_line
from lexray.storage.polling import poll
from lexray.storage.stream_memory import node_memory
from lexray.tuning.placement.memory_split import STORE_SHARE

log = logging.getLogger("lexray")

HOST = "127.0.0.1"
SOCKET_BYTES = 107 if sys.platform.startswith("linux") else 103
"""Maximum bytes of a Unix socket's path."""
RAY_FOLDER = "r"
LONGEST_SOCKET = f"session_{'0' * 26}_{'0' * 7}/sockets/plasma_store"
"""Longest socket path that Ray creates below its folder, with a time and a process id."""
_PYTHON_SOCKET = "/pymp-00000000/listener-00000000"
"""Longest socket path of Python's multiprocessing, used by Ray's dashboard, below the temporary folder."""
CLEAN_UP_S = 3.0
SHARED_MEMORY = "/dev/shm"
STORE_BYTES = 10**10
"""Maximum bytes of Ray's object store, which otherwise has 30 % of the memory, where `/dev/shm` is smaller."""


class RayStartError(UserError):
    """Ray cannot start on this machine."""


@dataclass(frozen=True, kw_only=True)
class LocalFolder:
    """A private folder for one Ray, and the fallbacks that this machine required."""

    path: Path
    """Folder of mode 0700 with `token` (0600) and Ray's own folder, which Ray makes world-accessible."""
    notes: tuple[str, ...] = ()
    """One line each: the problem, the fallback, the variable to set."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `ray.init`: the object store's folder, if not Ray's default."""

    @property
    def token_file(self) -> Path:
        return self.path / "token"

    @property
    def ray_folder(self) -> Path:
        return self.path / RAY_FOLDER


@contextmanager
def local_folder() -> Iterator[LocalFolder]:
    """Create the folder and remove it on exit. Raises RayStartError where no place is usable."""
    path, notes = make_private_folder(os.environ)
    options, store_notes = store_options(node_memory().machine, _free_shared_bytes(), path)
    try:
        yield LocalFolder(path=path, notes=(*notes, *store_notes), options=options)
    finally:
        _remove(path)


@contextmanager
def started(folder: LocalFolder, **options: Any) -> Iterator[None]:
    """Connect to a new Ray of this process's own within the context; `options` go to `ray.init`.

    Raises RayStartError with Ray's reason.
    """
    for note in folder.notes:
        log.warning("%s", note)
    with ExitStack() as stack:
        stack.enter_context(_variables(_environment(folder)))
        _write_token(folder.token_file)
        stack.callback(reread_token_settings)
        reread_token_settings()
        stack.callback(ray.shutdown)
        try:
            with on_loopback(), _variables(_address_of_its_own()):
                ray.init(
                    address="local",
                    _node_ip_address=HOST,
                    _temp_dir=str(folder.ray_folder),
                    include_dashboard=True,  # Ray Train frees the workers of stopped trials through it
                    dashboard_host=HOST,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **folder.options,
                    **options,
                )
        except Exception as error:  # Ray raises bare ones, too
            raise RayStartError(f"Ray does not start on this machine: {_reason(error)}") from error
        yield


def make_private_folder(environ: Mapping[str, str]) -> tuple[Path, tuple[str, ...]]:
    """Return a new folder (mode 0700) that Ray can use, and notes on unusable places.

    Raises RayStartError naming the variable to set when no place is left.
    """
    wrong: list[str] = []
    for variable, place in _candidates(environ):
        made, reason = _try(place)
        if made is not None:
            notes = [f"{line}; Ray's files go to {made.parent}" for line in wrong if line.startswith(tuple("RT"))]
            return made, tuple(notes)
        wrong.append(f"{variable or 'the folder'} {place}: {reason}")
    raise RayStartError(f"no folder for Ray's files ({'; '.join(wrong)}); set RAY_TMPDIR to a short, writable path")


def _candidates(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return variables and folders in Ray's order, then others that most machines have."""
    asked = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)
    named = [(name, environ[name]) for name in asked if environ.get(name)]
    others = ["/tmp", "/var/tmp", environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm"]
    return [*named, *(("", place) for place in others if place)]


def _try(place: str) -> tuple[Path | None, str]:
    """Create a private folder in `place`; return None and the reason if Ray could not use it."""
    try:
        mode = os.stat(place).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return None, "every user may replace what lies there"
        made = Path(tempfile.mkdtemp(prefix="lexray-", dir=os.path.abspath(place)))
    except OSError as error:
        return None, str(error.strerror or error)
    reason = _unfit(made)
    if reason:
        _remove(made)
        return None, reason
    return made, ""


def _unfit(folder: Path) -> str:
    """Return why a folder cannot hold Ray's sockets or is not private; empty if it is suitable."""
    longest = folder / RAY_FOLDER / LONGEST_SOCKET
    if (over := len(os.fsencode(longest)) - SOCKET_BYTES) > 0:
        have = len(os.fsencode(folder.parent))
        return f"the path has {have} bytes, Ray's sockets allow {have - over}"
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return "its file system keeps no permissions"
    try:
        longest.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(longest))
        shutil.rmtree(folder / RAY_FOLDER)
    except OSError as error:
        return f"its file system takes no sockets ({error.strerror or error})"
    return ""


def store_options(memory_bytes: int, shared_bytes: int | None, folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return options of `ray.init` that move the object store if `/dev/shm` is missing, and notes.

    `shared_bytes` are free there; None where there is no such folder, or it cannot be written. Ray itself puts the
    store into its own folder where `/dev/shm` is only too small.
    """
    wanted = min(STORE_BYTES, int(STORE_SHARE * memory_bytes))
    if not sys.platform.startswith("linux") or (shared_bytes is not None and shared_bytes >= wanted):
        return {}, ()
    have = "cannot be written" if shared_bytes is None else f"has {shared_bytes / 2**30:.1f} GiB free"
    note = (
        f"{SHARED_MEMORY} {have}, Ray's object store wants {wanted / 2**30:.1f} GiB: it lies in {folder.parent}, which "
        "is slower; enlarge it (docker run --shm-size=8g, or an emptyDir of medium Memory)"
    )
    if shared_bytes is not None:
        return {}, (note,)
    return {"object_store_memory": wanted, "_plasma_directory": str(folder)}, (note,)


def _free_shared_bytes() -> int | None:
    if not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return None
    found = os.statvfs(SHARED_MEMORY)
    return found.f_bavail * found.f_frsize


def _environment(folder: LocalFolder) -> dict[str, str | None]:
    """Return environment variables of this process and of all that Ray starts; None removes one."""
    found: dict[str, str | None] = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder.token_file)}
    found["RAY_AUTH_TOKEN"] = None  # goes before the path
    if len(os.fsencode(tempfile.gettempdir())) > SOCKET_BYTES - len(_PYTHON_SOCKET):
        found["TMPDIR"] = str(folder.path.parent)
    found["RAY_enable_metrics_collection"] = "0"  # the port of metrics is the one that asks for no token
    return found | {name: value for name, value in Liveness().ray_env.items() if name not in os.environ}


def _address_of_its_own() -> dict[str, str | None]:
    """Return variables that fix the address of a Ray to be started and pass it to all its processes.

    Without them Ray's own libraries search the machine's processes for a Ray, and may send this one's token to another
    user's.
    """
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    return {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{HOST}:{port}"}


def _write_token(path: Path) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


@contextmanager
def _variables(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables within the context, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def is_on_loopback_alone(address: str) -> bool:
    """Return whether a Ray at `HOST:PORT` listens on loopback and on no other address of this machine."""
    host, _, port = address.rpartition(":")
    if host not in (HOST, "localhost"):
        return False
    try:
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), timeout=1.0).close()
    except OSError:
        return True
    return False


def _reason(error: Exception) -> str:
    """Return Ray's error as one line: the first line, or the last of a log excerpt."""
    return (last_line(str(error)) if type(error) is Exception else "") or one_line(error)


def _remove(folder: Path) -> None:
    """Remove a folder to which ending processes may still write."""

    def is_gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    poll(is_gone, every_s=0.05, at_most_s=CLEAN_UP_S)
