"""What is sent with a job: the sweep file and, unless the cluster has it, the code. A zip of some hundred KB."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from storage.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
"""Folder that holds the packages, of a checkout or of an installation."""
PACKAGES = ("cluster", "tuning", "training", "storage")
MAX_BYTES = 10 * 10**6
LARGEST_NAMED = 3
SWEEP_FILE = "sweep.yaml"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""A zip's time of every file: equal content makes equal bytes, which the cluster takes once."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A zip, under a name that its content decides."""

    content: bytes
    num_files: int

    @property
    def name(self) -> str:
        return f"_ray_pkg_{hashlib.sha256(self.content).hexdigest()[:16]}.zip"

    @property
    def uri(self) -> str:
        """What the cluster's jobs call it."""
        return f"gcs://{self.name}"


def package(sweep_text: str, *, with_code: bool, root: Path = ROOT) -> Package:
    """The package of a job. Raises UserError naming the largest files when it is too large."""
    files = {SWEEP_FILE: sweep_text.encode()}
    if with_code:
        files |= {str(path.relative_to(root)): path.read_bytes() for path in code_files(root)}
    content = _zipped(files)
    if len(content) > MAX_BYTES:
        largest = sorted(files, key=lambda name: len(files[name]), reverse=True)[:LARGEST_NAMED]
        listed = ", ".join(f"{name} ({len(files[name]) / 1e6:.1f} MB)" for name in largest)
        raise UserError(
            f"upload: {len(content) / 1e6:.1f} MB, at most {MAX_BYTES / 1e6:.0f} MB; remove or move the largest files: "
            f"{listed}"
        )
    return Package(content=content, num_files=len(files))


def code_files(root: Path) -> list[Path]:
    """Every file of the packages, compiled ones left out."""
    found = [path for name in PACKAGES for path in sorted((root / name).rglob("*")) if path.is_file()]
    return [path for path in found if "__pycache__" not in path.parts]


def _zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return out.getvalue()
