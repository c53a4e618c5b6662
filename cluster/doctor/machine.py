"""Inspects the node that it runs on. Reads Linux interfaces; on other systems findings are unknown, with the reason."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from lexray.cluster.doctor.findings import NOT_ASKED, Device, Disk, Efa, MachineFacts, Unknown
from lexray.cluster.doctor.machine_checks import CODE
from lexray.cluster.ray_backend.package import PACKAGE, code_files
from lexray.storage.stream_memory import node_memory

LIBRARIES = ("ray", "torch", "deepspeed")
SHARED_MEMORY, FABRICS = "/dev/shm", "/sys/class/infiniband"
NCCL_PLUGIN = "libnccl-net.so"
"""Name under which NCCL opens its network plugin, unless NCCL_NET_PLUGIN gives another."""
_CGROUP_USE = (
    ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/memory/memory.stat"),
)
NVIDIA_SMI_TIMEOUT_S = 5
LIVENESS_PREFIXES = ("RAY_grpc_", "RAY_health_check_")


def look_at_machine(*, is_head: bool, cache_dir: str | None) -> MachineFacts:
    """Return the facts of this node: versions, devices, disks, memory and Ray's settings."""
    raylet = Path("/proc") / str(os.getppid())
    arguments = command_line(raylet)
    gcs = _gcs_of(arguments.get("session-name")) if is_head else None
    shared = _disk(SHARED_MEMORY)
    memory_bytes = node_memory().machine
    return MachineFacts(
        versions=versions(),
        devices=_devices(),
        fabrics=tuple(sorted(os.listdir(FABRICS))) if os.path.isdir(FABRICS) else (),
        efa=efa(),
        shared=shared,
        plasma_dir=arguments.get("plasma_directory"),
        temp=_disk(arguments["temp_dir"]) if "temp_dir" in arguments else Unknown("Ray's command line cannot be read"),
        cache=NOT_ASKED if cache_dir is None else _cache(cache_dir),
        memory_bytes=memory_bytes,
        used_bytes=_used_bytes(memory_bytes),
        liveness=_settings(raylet),
        gcs_liveness=NOT_ASKED if gcs is None else _settings(gcs),
    )


def efa(fabrics: str = FABRICS, devices: str = "/dev/infiniband", plugin: str = NCCL_PLUGIN) -> Efa | None:
    """Return this node's EFA cards, how many can be opened, and whether NCCL's plugin loads."""
    cards = [card for card in Path(fabrics).glob("*") if (card / "device/driver").resolve().name == "efa"]
    if not cards:
        return None
    verbs = {verb.name for card in cards for verb in (card / "device/infiniband_verbs").glob("*")}
    openable = sum(os.access(Path(devices, name), os.R_OK | os.W_OK) for name in verbs)
    try:
        ctypes.CDLL(plugin)
    except OSError as error:
        return Efa(cards=len(cards), openable=openable, plugin_fault=str(error))
    return Efa(cards=len(cards), openable=openable)


def versions() -> dict[str, str]:
    """Return the versions of Python and the libraries, and the hash of lexray's files, for this process."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "missing"
    return {**found, CODE: code_hash()}


def code_hash(folder: Path = PACKAGE) -> str:
    """Hash the names and contents of lexray's files; equal for a checkout and an installation."""
    total = hashlib.sha256()
    for name, file in code_files(folder).items():
        total.update(f"{name}\0".encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:12]


def command_line(process: Path) -> dict[str, str]:
    """Return a process's `--name=value` arguments by name; empty if it cannot be read."""
    try:
        parts = (process / "cmdline").read_text().split("\0")
    except OSError:
        return {}
    pairs = (part.removeprefix("--").partition("=")[::2] for part in parts if part.startswith("--") and "=" in part)
    return dict(pairs)


def _gcs_of(session: str | None) -> Path | None:
    """Find the GCS process of this session."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_gcs = (process / "comm").read_text().startswith("gcs_server")
        except OSError:  # it ended meanwhile
            continue
        if is_gcs and command_line(process).get("session-name") == session:
            return process
    return None


def _settings(process: Path) -> Mapping[str, str] | Unknown:
    """Return the health-check settings of a Ray process, from its environment and its `--config_list`."""
    try:
        entries = (process / "environ").read_text().split("\0")
    except OSError as error:
        return Unknown(f"the environment of Ray's processes cannot be read ({error.strerror})")
    found = dict(entry.split("=", 1) for entry in entries if entry.startswith(LIVENESS_PREFIXES) and "=" in entry)
    return found | system_config(command_line(process).get("config_list", ""))


def system_config(config_list: str) -> dict[str, str]:
    """Parse the health-check settings of a `--config_list` (JSON in base64), by names of environment variables."""
    if not config_list:
        return {}
    named = {f"RAY_{name}": str(value) for name, value in json.loads(base64.b64decode(config_list)).items()}
    return {name: value for name, value in named.items() if name.startswith(LIVENESS_PREFIXES)}


def _disk(path: str) -> Disk | Unknown:
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        return Unknown(f"{path}: {error.strerror}")
    return Disk(path=path, total_bytes=usage.total, free_bytes=usage.free)


def _cache(path: str) -> Disk | Unknown:
    """Return the disk of a folder that need not exist yet, and the size of its files."""
    there = Path(path).absolute()
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        return Unknown(f"{there} is not writable")
    disk = _disk(str(there))
    if isinstance(disk, Unknown):
        return disk
    held = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file()) if os.path.isdir(path) else 0
    return Disk(path=path, total_bytes=disk.total_bytes, free_bytes=disk.free_bytes, held_bytes=held)


def _used_bytes(memory_bytes: int) -> int:
    """Return the bytes of memory in use without droppable file cache; of the container if it has a limit."""
    machine = psutil.virtual_memory()
    if memory_bytes >= machine.total:
        return int(machine.total - machine.available)
    for use, stat in _CGROUP_USE:
        if os.path.exists(use):
            inactive = dict(line.split() for line in Path(stat).read_text().splitlines()).get("inactive_file", "0")
            return int(Path(use).read_text()) - int(inactive)
    return int(machine.total - machine.available)


def _devices() -> tuple[Device, ...] | Unknown:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        return Unknown("nvidia-smi is not installed")
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Unknown(f"nvidia-smi gave no answer in {NVIDIA_SMI_TIMEOUT_S} s")
    if answer.returncode:
        return Unknown(f"nvidia-smi failed ({(answer.stderr or answer.stdout).strip().splitlines()[-1:]})")
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if "," in line]
    return tuple(Device(name=name, driver=driver) for name, driver in rows)
