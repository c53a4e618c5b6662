"""Public docstrings say what comes out, instead of continuing the name with What, Of, How, Whose or Where."""

import ast
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTINUES_A_NAME = re.compile(r"\s*(What|Of|How|Whose|Where)\b")
FLOORS = ("cluster", "tuning", "training", "storage")


def documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of every public class, function, field and constant of a module or class."""
    for statement, following in zip_longest(body, body[1:]):
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                text = ast.get_docstring(statement)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name), *_]):
                text = string(following)
            case ast.Assign(targets=[ast.Tuple(elts=[ast.Name(id=name), *_])]):
                text = string(following)
            case _:
                continue
        if name.startswith("_"):
            continue
        if text:
            yield name, text
        if isinstance(statement, ast.ClassDef):
            yield from ((f"{name}.{inner}", text) for inner, text in documented(statement.body))


def string(statement: ast.stmt | None) -> str | None:
    """Return the string that is a whole statement, as under a field; None for any other statement."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return text
    return None


def continuing(source: str) -> list[str]:
    """Return the names of a module's public things whose docstring continues the name."""
    tree = ast.parse(source)
    found = [("module", ast.get_docstring(tree) or ""), *documented(tree.body)]
    return [name for name, text in found if CONTINUES_A_NAME.match(text)]


@pytest.mark.parametrize("floor", FLOORS)
def test_no_public_docstring_of_a_floor_continues_the_name(floor):
    files = sorted((ROOT / floor).rglob("*.py"))
    assert len(files) > 50
    found = {str(file.relative_to(ROOT)): continuing(file.read_text()) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


def test_such_a_docstring_is_found_under_a_module_class_method_field_and_constant():
    source = '''"""What a module is."""
LIMIT, OTHER = 1, 2
"""Of both."""
class Part:
    """Where it lies."""
    rows: int
    """How many."""
    _seen: int
    """How often; private."""
    @property
    def width(self):
        """Whose width."""
    def whatever(self):
        """Whatever comes: another word."""
class _Hidden:
    """What is private."""
'''
    assert continuing(source) == ["module", "LIMIT", "Part", "Part.rows", "Part.width"]
