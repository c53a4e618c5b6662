"""Packages the code for other processes: a zip of some hundred KB with the sweep file and lexray's own sources.

An allow-list decides what is uploaded: files of the four floors with the endings of `CODE_SUFFIXES`, and the
files of Python that `LEXRAY_PLUGINS` names. Nothing else of a checkout is read (`.env`, credentials, notebooks, runs).
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import lexray
from lexray.storage.errors import UserError

PACKAGE = Path(lexray.__file__).parent
"""The importable package, in a checkout (where the floors are links) or an installation."""
FLOORS = ("cluster", "tuning", "training", "storage")
CODE_SUFFIXES = (".py", ".j2", ".json")
MAX_BYTES = 10 * 10**6
LARGEST_NAMED = 3
SWEEP_FILE = "sweep.yaml"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Timestamp of every file in the zip, so that equal content gives equal bytes, which the cluster stores once."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A zip, named by the hash of its content."""

    content: bytes
    num_files: int

    @property
    def name(self) -> str:
        return f"_ray_pkg_{hashlib.sha256(self.content).hexdigest()[:16]}.zip"

    @property
    def uri(self) -> str:
        """Uri of the package in the cluster's jobs."""
        return f"gcs://{self.name}"


def package(sweep_text: str, folder: Path = PACKAGE) -> Package:
    """Return the package of a job: the sweep file and the code. Raises UserError naming the largest files if too large.

    The code is always in it: the head and the workers import it before whatever their image has installed, so that a
    sweep runs the code it was planned with.
    """
    return _packed({SWEEP_FILE: sweep_text.encode(), **_contents(folder)})


def code_package(folder: Path = PACKAGE) -> Package:
    """Return the package that Ray workers import lexray from. Raises UserError as `package` does."""
    return _packed(_contents(folder))


def _contents(folder: Path) -> dict[str, bytes]:
    from lexray.training.dictionaries.plugins import SHIPPED, plugin_files

    shipped = {f"lexray/training/dictionaries/{SHIPPED.name}/{path.name}": path for path in plugin_files()}
    return {name: path.read_bytes() for name, path in (code_files(folder) | shipped).items()}


def _packed(files: dict[str, bytes]) -> Package:
    content = _zipped(files)
    if len(content) > MAX_BYTES:
        largest = sorted(files, key=lambda name: len(files[name]), reverse=True)[:LARGEST_NAMED]
        listed = ", ".join(f"{name} ({len(files[name]) / 1e6:.1f} MB)" for name in largest)
        raise UserError(
            f"upload: {len(content) / 1e6:.1f} MB, at most {MAX_BYTES / 1e6:.0f} MB; remove or move the largest files: "
            f"{listed}"
        )
    return Package(content=content, num_files=len(files))


def code_files(folder: Path = PACKAGE) -> dict[str, Path]:
    """Map the name of every source file of `folder` below `lexray/` to its path; links to the floors are followed."""
    found = [*sorted(folder.glob("*.py"))]
    for floor in FLOORS:
        found += sorted((folder / floor).rglob("*"))
    named = {path: path.relative_to(folder) for path in found if path.suffix in CODE_SUFFIXES}
    return {
        f"lexray/{name.as_posix()}": path
        for path, name in named.items()
        if path.is_file() and not path.is_symlink() and not any(part.startswith((".", "__py")) for part in name.parts)
    }


def _zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return out.getvalue()
