"""The Terraform files of `infra/`, read as data."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hcl2

INFRA = Path(__file__).resolve().parents[2] / "infra"
ROOTS = tuple(INFRA / name for name in ("aws-ec2", "aws-eks"))
MODULES = tuple(sorted(path for path in (INFRA / "modules/aws").iterdir() if path.is_dir()))


@dataclass(frozen=True, kw_only=True)
class Block:
    """One resource or data source."""

    file: Path
    type: str
    name: str
    body: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.file.relative_to(INFRA)}: {self.type}.{self.name}"


def plain(value: Any) -> Any:
    """Without the quotes and marks that the parser keeps."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items() if key != "__is_block__"}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str) and value.startswith('"<<-'):
        lines = value.strip('"').splitlines()
        return textwrap.dedent("\n".join(lines[1:-1]))
    if isinstance(value, str) and len(value) >= 2 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value


@cache
def parsed(file: Path) -> dict[str, Any]:
    with file.open(encoding="utf-8") as opened:
        return plain(hcl2.load(opened))


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tf"))


def blocks(kind: str, *folders: Path) -> Iterator[Block]:
    """`resource` or `data` blocks of some folders, or of all."""
    for folder in folders or (*ROOTS, *MODULES):
        for file in files_of(folder):
            for entry in parsed(file).get(kind, []):
                for type_, named in entry.items():
                    for name, body in named.items():
                        yield Block(file=file, type=type_, name=name, body=body)


def resources(type_: str) -> list[Block]:
    return [block for block in blocks("resource") if block.type == type_]


def declared(kind: str, folder: Path) -> dict[str, dict[str, Any]]:
    """`variable` or `output` blocks of a folder by name, in the order of the file."""
    return {
        name: body for file in files_of(folder) for entry in parsed(file).get(kind, []) for name, body in entry.items()
    }


def type_text(variable: dict[str, Any]) -> str:
    """The type as HCL writes it."""
    return re.sub(r"^\$\{(.*)\}$", r"\1", str(variable["type"]), flags=re.DOTALL)
