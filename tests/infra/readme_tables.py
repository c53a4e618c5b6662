"""The tables of variables and outputs in `infra/README.md`, made from the Terraform files.

`python tests/infra/readme_tables.py` (or `make infra-tables`) writes them between their marks.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hcl_files import INFRA, ROOTS, declared, type_text

README = INFRA / "README.md"


def commands(section: str) -> list[str]:
    """Return what a section of the README tells to type, in its order."""
    text = README.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    joined = re.sub(r"\\\n\s+", "", text)
    return [line.strip() for line in joined.splitlines() if re.match(r" {4}\S", line)]


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _short_type(variable: dict[str, Any]) -> str:
    text = type_text(variable)
    return re.sub(r"object\(.*\)", "object", text, flags=re.DOTALL)


def _default(variable: dict[str, Any]) -> str:
    if "default" not in variable:
        return "needed"
    value = variable["default"]
    if isinstance(value, str) and value.startswith("${"):
        value = value[2:-1]
    text = json.dumps(value)
    return "see file" if len(text) > 40 else f"`{text}`"


def variables_table(root: Path) -> str:
    rows = ["| variable | type | default | what |", "|---|---|---|---|"]
    for name, body in declared("variable", root).items():
        rows.append(f"| `{name}` | {_short_type(body)} | {_default(body)} | {_one_line(body['description'])} |")
    return "\n".join(rows)


def outputs_table(root: Path) -> str:
    rows = ["| output | what |", "|---|---|"]
    for name, body in declared("output", root).items():
        rows.append(f"| `{name}` | {_one_line(body['description'])} |")
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """The README with its tables made anew; raises ValueError when a mark is missing."""
    for root in ROOTS:
        for kind, table in (("variables", variables_table(root)), ("outputs", outputs_table(root))):
            begin, end = f"<!-- {kind} of {root.name} -->", f"<!-- end of {kind} of {root.name} -->"
            if begin not in text or end not in text:
                raise ValueError(f"{README.name} lacks {begin} ... {end}")
            before, _, rest = text.partition(begin)
            after = rest.partition(end)[2]
            text = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
