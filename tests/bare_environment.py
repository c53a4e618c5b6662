"""A Python environment like that of the public images rayproject/ray: Ray, boto3 of their version, and no lexray."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

BOTO3 = "boto3==1.29.7"
"""As in the images' lock file python/deplocks/base_deps/ray_base_deps_py3.11.lock."""


def bare_environment(folder: Path) -> Path:
    """Install it in `folder`; return its `bin`."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", f"ray[default]=={version('ray')}", BOTO3]
    subprocess.run(command, check=True, timeout=600)
    for module in ("lexray", "torch"):
        done = subprocess.run([folder / "bin" / "python", "-c", f"import {module}"], cwd=folder, capture_output=True)
        assert done.returncode == 1, f"{module} is there"
    return folder / "bin"
