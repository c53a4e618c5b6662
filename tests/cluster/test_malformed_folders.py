"""A sweep folder of somebody else, or a damaged one: a line that names the file and the field, never a traceback."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from quick_cases import quick
from report_folder import full_sweep

from lexray.tuning.sweep_folder import SweepFolder

DRIVER = {"claim": "a", "host": "h", "started_s": 1.0, "seen_s": 2.0, "state": "ended"}
PLAN = {
    "trials": [{"id": "topk-0", "name": "topk-0", "reused": False, "steps": 9, "seconds": 3.0, "memory": {}}],
    "speeds": {"kind": {"rows_per_s": 1.0, "source": "measured"}},
    "store_bytes": 10,
}
DATASET = {"rows": 3, "sites": {"a": {"width": 3, "dtype": "float32", "source": ""}}, "provenance": {"a": [{"b": 1}]}}


@pytest.fixture
def sweep(tmp_path) -> tuple[SweepFolder, Path]:
    place = tmp_path / "sweep"
    folder, _ = full_sweep(place)
    for name, document in (("driver", DRIVER), ("plan", PLAN), ("dataset", DATASET)):
        folder.store.write(f"{name}.json", json.dumps(document).encode())
    return folder, place


def changed(place: Path, file: str, path: str, value: Any) -> None:
    """Set a field of a document in the folder; of metrics.jsonl, in its second line."""
    lines = (place / file).read_text().splitlines() if file.endswith("jsonl") else [(place / file).read_text()]
    number = min(1, len(lines) - 1)
    document = json.loads(lines[number])
    *parents, last = path.split("/")
    inner = document
    for name in parents:
        inner = inner[int(name) if isinstance(inner, list) else name]
    inner[int(last) if isinstance(inner, list) else last] = value
    lines[number] = json.dumps(document)
    (place / file).write_text("\n".join(lines))


TRIAL, LOG = "trials/topk-0/trial.json", "trials/topk-0/metrics.jsonl"
CASES = [
    ("status", TRIAL, "config", [], f"{TRIAL}: config: Input should be an object"),
    ("status", TRIAL, "config/dictionary", 3, f"{TRIAL}: config: dictionary: Input should be a valid dictionary"),
    ("status", TRIAL, "config/dictionary", {}, f"{TRIAL}: config: dictionary.architecture: Field required"),
    ("status", TRIAL, "config/dictionary/width", "64", "config: dictionary.width: Input should be a valid integer"),
    ("status", TRIAL, "config/dictionary/width", 10**30, "config: a whole number has more than 64 bits"),
    ("status", TRIAL, "config/data/inputs", "layer3", "config: data.inputs: Input should be a valid list"),
    ("status", TRIAL, "config/data/batch_rows", -1, "config: data.batch_rows: Input should be greater than or equal"),
    ("list", TRIAL, "name", None, f"{TRIAL}: name: Input should be a valid string, got None"),
    ("list", TRIAL, "status", 3, f"{TRIAL}: status: Input should be a valid string, got 3"),
    ("compare", TRIAL, "trial", "../../x", f"{TRIAL}: trial: '../../x', but its folder is called 'topk-0'"),
    ("compare", TRIAL, "result", [1], f"{TRIAL}: result: Input should be an object"),
    ("compare", TRIAL, "result/l0", "low", f"{TRIAL}: result.l0: is no number, got 'low'"),
    ("compare", TRIAL, "curve", [{}], f"{TRIAL}: curve: 0.k: Field required"),
    ("report", TRIAL, "timing/total_s", "long", f"{TRIAL}: timing.total_s: Input should be a valid number"),
    ("report", TRIAL, "workers", -1, f"{TRIAL}: workers: Input should be greater than or equal to 0"),
    ("report", LOG, "step", None, f"{LOG}: line 2: step: Input should be a valid integer, got None"),
    ("report", LOG, "eval", "many", f"{LOG}: line 2: eval: is no number, got 'many'"),
    ("logs", LOG, "step", "two", f"{LOG}: line 2: step: is no number, got 'two'"),
    ("logs", LOG, "rows", 1.5, f"{LOG}: line 2: rows: Input should be a valid integer"),
    ("status", "driver.json", "seen_s", "now", "driver.json: seen_s: Input should be a valid number, got 'now'"),
    ("status", "driver.json", "seen_s", 1e300, "driver.json: seen_s: Input should be less than"),
    ("stop", "driver.json", "seen_s", float("nan"), "driver.json: seen_s: Input should be a finite number"),
    ("list", "driver.json", "waiting", [3], "driver.json: waiting.0: Input should be a valid string, got 3"),
    ("status", "driver.json", "links", [], "driver.json: links: Input should be an object"),
    ("status", "plan.json", "trials", {}, "plan.json: trials: Input should be a valid list"),
    ("status", "plan.json", "trials/0", {}, "plan.json: trials.0.id: Field required"),
    ("status", "plan.json", "trials/0/steps", None, "plan.json: trials.0.steps: Input should be a valid integer"),
    ("report", "plan.json", "store_bytes", "all", "plan.json: store_bytes: Input should be a valid number"),
    ("report", "dataset.json", "rows", "all", "dataset.json: rows: Input should be a valid integer, got 'all'"),
    ("report", "dataset.json", "sites", [], "dataset.json: sites: Input should be a valid dictionary"),
    ("report", "dataset.json", "provenance", None, "dataset.json: provenance: Input should be a valid dictionary"),
    ("report", "trials/topk-0/spent.json", "cpu_s", -1, "spent.json: cpu_s: Input should be greater than or equal"),
]


def words(command: str, place: Path) -> list[str]:
    given = {"list": [str(place.parent)], "compare": [str(place)] * 2, "logs": [str(place), "topk-0"]}
    return [command, *given.get(command, [str(place)])]


@pytest.mark.parametrize(("command", "file", "path", "value", "expected"), CASES)
def test_a_field_of_another_type_is_named_with_its_file(command, file, path, value, expected, sweep, lexray):
    changed(sweep[1], file, path, value)
    code, out, err = lexray(*words(command, sweep[1]))
    assert code == 1, err
    assert out == ""
    assert err.count("\n") == 1
    assert expected in err


CONTENTS = {
    "empty": b"",
    "truncated": b'{"trial": "topk-0", "na',
    "deep": b"[" * 100_000,
    "binary": random.Random(0).randbytes(200),
    "null": b"null",
    "list": b"[]",
    "number": b"3",
    "long": b'{"a": "' + b"x" * (17 * 2**20) + b'"}',
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(("command", "file"), [("status", TRIAL), ("logs", LOG), ("stop", "driver.json")])
def test_what_is_no_such_document_is_named(command, file, content, sweep, lexray):
    (sweep[1] / file).write_bytes(CONTENTS[content])
    code, _, err = lexray(*words(command, sweep[1]))
    if file == LOG and content == "empty":
        assert code == 0
        return
    assert code == 1, err
    assert err.count("\n") == 1
    assert f"{file}: " in err
    assert len(err) < 400


@pytest.mark.parametrize("file", ["stability.json", "trials/topk-0/measures.json", "sweep.yaml"])
@pytest.mark.parametrize("content", quick(["empty", "deep", "binary", "list"], ["deep"]))
def test_a_report_goes_on_without_what_only_adds_to_it(file, content, sweep, lexray):
    (sweep[1] / file).write_bytes(CONTENTS[content])
    if file == "trials/topk-0/measures.json":
        changed_later = {"version": 1, "firing": {"log10_edges": "many"}}
        (sweep[1] / "trials/topk-1/measures.json").write_text(json.dumps(changed_later))
    code, _, err = lexray("report", sweep[1])
    assert code == 0, err
    assert "Traceback" not in err
    assert (sweep[1] / "report.html").stat().st_size > 1000


def test_a_folder_in_the_place_of_a_document_is_named(sweep, lexray):
    (sweep[1] / TRIAL).unlink()
    (sweep[1] / TRIAL).mkdir()
    code, _, err = lexray("status", sweep[1])
    assert (code, err) == (1, f"error {TRIAL}: is no regular file\n")
