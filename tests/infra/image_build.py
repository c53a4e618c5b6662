"""The Dockerfile as data, and its environment built without Docker: the same lines, in folders of a test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from kubernetes_kinds import ROOT

FOLDER = ROOT / "infra" / "image"
Stage = list[tuple[str, str]]
"""Instructions as (word, rest)."""


def stages() -> list[Stage]:
    """Read the Dockerfile: lines joined, comments left out."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (FOLDER / "Dockerfile").read_text()).replace("\\\n", " ")
    found: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest.strip()))
    return found


def copied(stage: Stage) -> list[str]:
    """Return the paths that a stage copies from the repository."""
    rests = [rest.split() for word, rest in stage if word == "COPY" and "--from" not in rest]
    return [source.rstrip("/") for sources in rests for source in sources[:-1]]


def build(folder: Path) -> Path:
    """Run every instruction that concerns Python; return the `bin` that stands for `/opt/lexray/bin`."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    source = folder / "source"
    source.mkdir()
    for word, rest in (instruction for stage in stages() for instruction in stage):
        rest = rest.replace("/opt/lexray", str(folder / "lexray")).replace("/wheels", str(folder / "wheels"))
        if word == "ENV":
            env |= {name: value.replace("$PATH", env["PATH"]) for name, value in _pairs(rest)}
        elif word == "COPY" and "--from" not in rest:
            _copy([ROOT / name for name in rest.split()[:-1]], source / rest.split()[-1])
        elif word == "RUN" and "python -m" in rest:
            command = re.sub(r"^--mount=\S+\s+", "", rest)
            done = subprocess.run(command, shell=True, cwd=source, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return folder / "lexray" / "bin"


def _pairs(rest: str) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (part.partition("=") for part in rest.split())]


def _copy(sources: list[Path], target: Path) -> None:
    """As COPY does it: a folder's content into the folder, files into it; links stay links."""
    ignored = shutil.ignore_patterns("__pycache__")
    for path in sources:
        if path.is_dir():
            shutil.copytree(path, target, symlinks=True, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy2(path, target / path.name if target.is_dir() else target)
