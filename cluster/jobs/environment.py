"""The Python environment of a job on nodes that have Ray and no lexray: its requirements, installed when it starts.

Ray's own plugin installs them by uv (`runtime_env["uv"]`): each node makes a virtual environment over its Ray, once for
all jobs that have equal requirements.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lexray.cluster.provisioned.description import SETUP_TIMEOUT_S, ClusterDescription
from lexray.storage.errors import UserError

EXTRAS = ("", "harvest")
"""Extras of lexray whose packages belong to a job where the sender has them; the empty one is lexray's own."""


def job_environment(description: ClusterDescription | None, ray_version: str) -> dict[str, Any]:
    """Return what a job's `runtime_env` says of Python packages; nothing where the cluster's image has them.

    `ray_version` is the head's. Raises UserError unless it is this machine's.
    """
    if description is None or description.python_environment == "image":
        return {}
    ours = version("ray")
    if ray_version != ours:
        raise UserError(
            f"cluster {description.name}: its head runs Ray {ray_version}, this machine {ours}; with "
            f"`python_environment: uv` both must be equal: use the image rayproject/ray:{ours}-py311-gpu, or install "
            f"ray=={ray_version} here"
        )
    return {"uv": {"packages": pins()}, "config": {"setup_timeout_seconds": SETUP_TIMEOUT_S}}


def pins() -> list[str]:
    """Return `name==version` of everything that lexray requires, directly or not, as installed here, sorted.

    Ray is left out: the nodes have it, and Ray refuses another version. What Ray requires is in. A local version
    (`2.13.0+cpu`) names a build for this machine and is cut: nodes take the build of their package index. Raises
    UserError where lexray is not installed as a package.
    """
    found: dict[str, str] = {}
    ahead = [("lexray", extra) for extra in EXTRAS]
    seen = set(ahead)
    while ahead:
        for required in _required(*ahead.pop()):
            name = canonicalize_name(required.name)
            try:
                found[name] = Version(version(name)).public
            except PackageNotFoundError:
                continue  # of an extra that this machine does without
            new = {(name, extra) for extra in ("", *required.extras)} - seen
            seen |= new
            ahead += new
    return [f"{name}=={found[name]}" for name in sorted(found.keys() - {"lexray", "ray"})]


def _required(name: str, extra: str) -> Iterator[Requirement]:
    """Yield what the installed distribution requires on this machine, with one of its extras or with none (empty)."""
    try:
        lines = distribution(name).requires or []
    except PackageNotFoundError as error:
        raise UserError(
            f"{name}: not installed as a package, so that its requirements are unknown; `pip install` it"
        ) from error
    for line in lines:
        required = Requirement(line)
        if required.marker is None or required.marker.evaluate({"extra": extra}):
            yield required
