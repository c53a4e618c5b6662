"""No class name stands twice in a floor: whoever reads one knows which is meant."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("floor", ["cluster", "tuning", "training", "storage"])
def test_no_class_name_stands_twice_in_a_floor(floor):
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / floor).rglob("*.py"))]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert len(names) > 50
    assert [name for name, count in names.items() if count > 1] == []


def test_training_has_no_loose_module():
    assert {path.name for path in (ROOT / "training").glob("*.py")} == {"__init__.py", "config.py"}
