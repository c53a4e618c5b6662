"""What people called `:cat:` stays what they called it."""

import ast
from pathlib import Path

from sweeps import write_dataset

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("cluster", "tuning", "training", "storage")


def consoles(text):
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Console"]


def test_no_console_makes_pictures_of_words_between_colons():
    made = {
        f"{file.relative_to(ROOT)}:{call.lineno}": ast.unparse(call)
        for floor in FLOORS
        for file in (ROOT / floor).rglob("*.py")
        for call in consoles(file.read_text(encoding="utf-8"))
    }
    assert len(made) > 10, "consoles are made some other way: this looks at nothing"
    assert [where for where, call in made.items() if "emoji=False" not in call] == []


def test_a_folder_is_shown_by_its_name(lexray, tmp_path):
    folder = tmp_path / ":cat:"
    write_dataset(folder)
    code, out, err = lexray("data", "inspect", folder)
    assert code == 0, err
    assert ":cat:" in out
