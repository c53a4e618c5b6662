"""The first two everyday changes of `docs/changing.md`, made in a copy of the package; changed files are counted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("cluster", "tuning", "training", "storage")
EXAMPLE = ROOT / "examples" / "own_architecture" / "log_sum.py"

USES = """
import torch
from lexray.training.cost.memory import rank_memory
from lexray.training.dictionaries import ARCHITECTURES, dictionary_config, make_dictionary
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.dictionaries.describe import describe
made = make_dictionary(
    dictionary_config({"architecture": NAME, "width": 30, "target_l0": 5, **OPTIONS}),
    Sites.same(SiteStatistics(mean=(0.0,) * 7, mean_squared_norm=1.0)),
)
loss = made.loss(torch.randn(24, 7), 24)
loss.loss.backward()
assert describe(NAME).options
print(sorted(loss.sums))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the four floors as an installed package has them."""
    folder = tmp_path / "lexray"
    folder.mkdir()
    shutil.copy(ROOT / "lexray" / "__init__.py", folder)
    for floor in FLOORS:
        shutil.copytree(ROOT / floor, folder / floor, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def changed(package: Path, change: Callable[[Path], None]) -> list[str]:
    """Names of the files that a change adds or edits."""
    before = contents(package)
    change(package)
    after = contents(package)
    return sorted(str(path.relative_to(package)) for path in after if after[path] != before.get(path))


def add_defaults(package: Path, kind: str, options: dict[str, object]) -> None:
    path = package / "training" / "identity" / "defaults.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps({**table, "99": {"codes": {kind: options}}}))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def an_architecture(package: Path) -> None:
    outside = r"^(from lexray\.training\.dictionaries.*|register\(.*)\n"
    code = re.sub(outside, "", EXAMPLE.read_text(), flags=re.MULTILINE)
    (package / "training" / "codes" / "log_sum.py").write_text(code)
    table = package / "training" / "dictionaries" / "__init__.py"
    edit(table, 'register("nmf", NMF)\n', 'register("nmf", NMF)\nregister("log_sum", SAE, LogSumReLU)\n')
    edit(
        table,
        "from lexray.training.codes.base import Code\n",
        "from lexray.training.codes.base import Code\nfrom lexray.training.codes.log_sum import LogSumReLU\n",
    )
    add_defaults(package, "log_sum", {"epsilon": 0.1})


def a_term_of_a_family(package: Path) -> None:
    """The mean error, for all codes with a linear encoder."""
    (package / "training" / "objectives" / "bias_error.py").write_text(
        '"""Squared norm of the mean error of this rank\'s rows."""\n\n'
        "def bias_error(forward, axes):\n"
        "    return forward.reconstruction.error_BO.mean(0).square().sum()\n"
    )
    shared = package / "training" / "codes" / "shared_terms.py"
    row = '    "bias": lambda score, value: bias_error,\n'
    edit(shared, "k_aux=None),\n", f"k_aux=None),\n{row}")
    edit(
        shared,
        "from lexray.training.objectives.auxk import AuxK\n",
        "from lexray.training.objectives.auxk import AuxK\n"
        "from lexray.training.objectives.bias_error import bias_error\n",
    )


def used(package: Path, name: str, options: str) -> str:
    """What a process with the changed package says of the architecture's loss."""
    code = USES.replace("NAME", repr(name)).replace("OPTIONS", options)
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=package.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_architecture_takes_three_files(package: Path) -> None:
    assert changed(package, an_architecture) == [
        "training/codes/log_sum.py", "training/dictionaries/__init__.py", "training/identity/defaults.json",
    ]  # fmt: skip
    assert "'sparsity'" in used(package, "log_sum", "{'epsilon': 0.2}")


def test_a_term_that_families_share_takes_two_files(package: Path) -> None:
    assert changed(package, a_term_of_a_family) == [
        "training/codes/shared_terms.py", "training/objectives/bias_error.py",
    ]  # fmt: skip
    for name in ("relu", "gated_p_anneal", "jumprelu", "batch_topk"):
        assert "'bias'" in used(package, name, "{'terms': {'bias': 0.5}}")


def test_the_files_that_the_page_names_are_there() -> None:
    page = (ROOT / "docs" / "changing.md").read_text()
    named = [name for name in re.findall(r"`([a-z_]+/[\w/.]+)`", page) if not re.search("NAME|FAMILY", name)]
    assert len(named) > 12
    assert [name for name in named if not (ROOT / name).exists()] == []
    rows = [line for line in page.splitlines() if line.startswith("| a")]
    assert len(rows) == 10
    for row in rows:
        if not row.startswith("| a cloud"):
            of_ours = re.sub(r"\(or [^)]*\)|; from outside.*", "", row)
            counted = re.findall(r"`([\w/.]+\.(?:py|json))`", of_ours)
            assert len(set(counted)) <= 3, row
