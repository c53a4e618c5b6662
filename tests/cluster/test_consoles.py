"""What somebody else called something is shown as text: it does nothing to a terminal, and is no markup or picture."""

import ast
import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_folder import full_sweep
from rich.table import Table
from sweeps import write_dataset
from synthetic import write_rows

from lexray.cluster.consoles import PlainStream, TextConsole, plain_streams
from lexray.cluster.output import print_json
from lexray.storage.manifest import MANIFEST, Manifest, dataset_id
from lexray.storage.store import Store
from lexray.storage.visible_text import spreadsheet_cell, visible
from lexray.tuning.sweep_folder import FAILED, SweepFolder, TrialRecord

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("cluster", "tuning", "training", "storage")

ATTACKS = {
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;ZWNobyBoaQ==\x1b\\",
    "C1 title": "\x9d0;owned\x9c",
    "clear": "\x1b[2J\x1b[H",
    "C1 clear": "\x9b2J",
    "colour": "\x1b[8mhidden\x1b[0m",
    "link": "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "reset": "\x1bc",
    "device": "\x1bP$q\x1b\\",
    "nested": "\x1b\x1b[31m[2J",
    "unfinished": "\x1b]0;owned",
    "return": "fine\rERROR",
    "backspace": "abc\x08\x08\x08xyz",
    "bell": "\x07",
    "delete": "\x7f",
    "NUL": "a\0b",
    "direction": "\u202egpj.exe\u2066",
    "separator": "a\u2028b",
    "tags": "a\U000e0041",
}
MARKUP = "[red]a[/red] [link=http://evil]b[/link] :cat: [/nothing]"
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)
ALL = "".join(f"{name}{attack}" for name, attack in ATTACKS.items())


def is_plain(text: str) -> bool:
    return not UNSEEN.search(text)


def test_nothing_is_printed_but_by_consoles_on_which_text_is_text():
    made = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for floor in FLOORS
        for file in (ROOT / floor).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".", 1)[-1] in ("Console", "from_markup")
    ]
    assert made == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_control_character_is_left_in_visible_text(attack):
    shown = visible(f"before {ATTACKS[attack]} after")
    assert is_plain(shown)
    assert shown.startswith("before ")
    assert shown.endswith(" after")


@settings(deadline=None)
@given(st.text(st.characters() | st.sampled_from("\x1b[]\\\x07\x9b\x9d\x9c;m0")))
def test_visible_text_has_nothing_but_characters(text):
    shown = visible(text)
    assert is_plain(shown)
    assert visible(shown) == shown
    shown.encode()


def test_text_in_any_language_stays_what_it_is():
    text = "naïve 模型 модель γλώσσα\t言葉\n\U0001f600 1e-5 [x] \\n"
    assert visible(text) == text


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_console_shows_foreign_text_and_keeps_its_own_colours(is_terminal):
    out = io.StringIO()
    console = TextConsole(file=out, force_terminal=is_terminal, width=4000)
    table = Table("name", ALL, title=ALL)
    table.add_row(ALL, MARKUP)
    console.print(ALL, MARKUP)
    console.print(table, style="red")
    with console.status(ALL + MARKUP):
        pass
    written = out.getvalue()
    assert MARKUP in written
    own = re.compile("\x1b\\[[0-9;?]*[mKAhl]|\r" if is_terminal else "(?!)")
    assert is_plain(own.sub("", written))
    assert "\x1b[8m" not in written
    assert ("\x1b[31m" in written) is is_terminal


def test_what_is_printed_by_other_means_passes_through_a_plain_stream(capsys):
    with plain_streams():
        print(ALL)
        sys.stdout.writelines([ALL, "\n"])
        print("10%\r20%", ALL.replace("\r", ""), file=sys.stderr)
        TextConsole(force_terminal=True).print("red", style="red")
        assert not sys.stdout.isatty()
    captured = capsys.readouterr()
    assert captured.out.count("\x1b[31mred\x1b[0m\n") == 1
    assert is_plain(captured.out.replace("\x1b[31mred\x1b[0m", ""))
    assert "10%\r20%" in captured.err
    assert is_plain(captured.err.replace("\r", ""))
    assert not isinstance(sys.stdout, PlainStream)


def test_a_json_document_keeps_its_strings_and_has_no_control_character(capsys):
    document = {"name": ALL, ALL: [float("nan"), float("inf"), 1.5, ("a", float("nan"))]}
    print_json(document)
    written = capsys.readouterr().out
    assert is_plain(written)
    assert written.isascii()
    assert json.loads(written) == {"name": ALL, ALL: [None, None, 1.5, ["a", None]]}


@pytest.fixture
def hostile_sweep(tmp_path) -> Path:
    """A sweep whose names, reasons and logs attack the terminal; JSON keeps them from being broken."""
    folder, trials = full_sweep(tmp_path / "sweep")
    for trial in trials[:2]:
        record = folder.read_trial(trial)
        assert record is not None
        config = json.loads(json.dumps(record.config))
        config["dictionary"]["architecture"] = f"topk{ALL}{MARKUP}"
        config["data"]["inputs"] = [f"site{ALL}{MARKUP}"]
        changes = {"name": f"trial{ALL}{MARKUP}", "reason": ALL, "config": config}
        folder.write_trial(TrialRecord(**vars(record) | changes))
    folder.write_trial(TrialRecord(trial="bad", name="bad", config={}, status=FAILED, reason=ALL + MARKUP))
    now = {"claim": "a", "host": ALL, "job": ALL, "started_s": 1.0, "seen_s": 2.0, "reason": ALL, "state": "failed"}
    folder.store.write("driver.json", json.dumps(now | {"waiting": [ALL], "links": {"a": ALL}}).encode())
    folder.store.write("log.txt", f"line one {ALL}\nline two {MARKUP}\n".encode())
    return tmp_path / "sweep"


COMMANDS = (
    ("status", ()),
    ("logs", ()),
    ("logs", ("bad",)),
    ("report", ()),
    ("stop", ()),
)


@pytest.mark.parametrize(("command", "options"), COMMANDS)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_hostile_sweep_does_nothing_to_the_terminal(command, options, as_json, hostile_sweep, lexray):
    code, out, err = lexray(command, hostile_sweep, *options, *(["--json"] if as_json else []))
    assert code == 0, err
    assert out
    assert is_plain(out), out
    assert is_plain(err), err
    if as_json:
        json.loads(out)


def test_a_hostile_sweep_does_nothing_to_a_browser(hostile_sweep, lexray):
    assert lexray("report", hostile_sweep)[0] == 0
    page = (hostile_sweep / "report.html").read_text()
    assert is_plain(page)
    assert is_plain((hostile_sweep / "frontier.svg").read_text())
    assert "[link=http://evil]" in page


def test_a_hostile_dataset_does_nothing_to_the_terminal(tmp_path, lexray):
    written = write_rows(tmp_path, 40, sites={f"x{ALL}{MARKUP}": 4}, provenance={ALL: {"a": ALL + MARKUP}})
    content = json.loads(written.store.read(MANIFEST))
    for site in content["sites"].values():
        site["source"] = ALL + MARKUP
    content["id"] = dataset_id(Manifest.model_validate(content))
    written.store.write(MANIFEST, json.dumps(content).encode())
    for command in (("data", "inspect"), ("data", "verify")):
        code, out, err = lexray(*command, tmp_path)
        assert code == 0, err
        assert is_plain(out), out
        assert is_plain(err), err
        assert "[link=http://evil]" in " ".join(out.split())


def test_errors_are_one_line_of_text(tmp_path, lexray):
    SweepFolder(Store.at(str(tmp_path))).store.write("sweep.yaml", b"name: a")
    (tmp_path / "driver.json").write_text(json.dumps({"claim": f"a\n{ALL}{MARKUP}", ALL: 1, "host": 3}))
    code, out, err = lexray("status", tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith("error driver.json: ")
    assert err.count("\n") == 1
    assert is_plain(err)


def test_on_a_real_terminal_only_lexray_moves_the_cursor(hostile_sweep):
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "200"}
    command = [sys.executable, "-m", "lexray", "status", str(hostile_sweep)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    written = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        written += piece
    os.close(ours)
    assert process.wait() == 0, written
    shown = re.sub("\x1b\\[[0-9;]*m|\r\n", "", written.decode())
    assert "trialtitle" in shown
    assert is_plain(shown)


def test_a_folder_is_shown_by_its_name(lexray, tmp_path):
    folder = tmp_path / ":cat:"
    write_dataset(folder)
    code, out, err = lexray("data", "inspect", folder)
    assert code == 0, err
    assert ":cat:" in out


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "  =", "\x1b[0m=", "\u202e=", "\uff1d"])
def test_a_cell_of_foreign_text_is_no_formula(start):
    cell = spreadsheet_cell(f"{start}HYPERLINK(1)")
    assert cell.startswith("'") or cell == "HYPERLINK(1)"
    assert spreadsheet_cell("topk-w64") == "topk-w64"


def test_the_table_of_a_hostile_sweep_computes_nothing(tmp_path, lexray):
    folder, trials = full_sweep(tmp_path)
    for trial, start in zip(trials, "=+-@\t\r", strict=False):
        record = folder.read_trial(trial)
        assert record is not None
        config = json.loads(json.dumps(record.config))
        config["dictionary"]["architecture"] = f"{start}1"
        config["data"]["inputs"] = [f"{start}cmd|' /C calc'!A0"]
        changes = {"name": f"{start}SUM(A1)", "reason": f"{start}1+1", "config": config}
        folder.write_trial(TrialRecord(**vars(record) | changes))
    assert lexray("report", tmp_path)[0] == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "frontier.csv").read_text())))
    assert len(rows) == len(trials)
    for row in rows:
        for column in ("trial", "name", "architecture", "sites", "status", "reason"):
            assert not row[column].startswith(("=", "+", "-", "@", "\t", "\r")), (column, row[column])
        assert float(row["target_l0"]) > 0
        assert row["width"].isdigit()
    assert sum(row["name"].startswith("'") for row in rows) == 5  # a carriage return is gone
