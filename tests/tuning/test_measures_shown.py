"""The measures of a trial reach the table's files, the report, W&B and the terminal; axes and criteria are chosen."""

from __future__ import annotations

import json
import math
import re
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from report_folder import full_sweep, measures, point_record
from rich.console import Console
from typer.testing import CliRunner
from wandb_offline import read_summary

from lexray.cluster.cli import app
from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.training.measures.held_out import read_measures
from lexray.tuning.results.columns import COLUMNS, MEASURES, NUMERIC, FrontierAxes, frontier_axes
from lexray.tuning.results.curves import fvu_svg
from lexray.tuning.results.frontier import frontier_rich_table, frontier_table, on_frontier, read_frontier
from lexray.tuning.results.measured import common_distortion
from lexray.tuning.results.plot import frontier_svg
from lexray.tuning.results.recommend import CRITERIA, criterion, recommend
from lexray.tuning.results.report import build_results
from lexray.tuning.sweep_folder import STOPPED, SweepFolder
from lexray.tuning.views.wandb_ids import RunIds
from lexray.tuning.views.wandb_mirror import WandbMirror
from lexray.tuning.views.wandb_runs import WandbRuns

BITS = ({"0.5": 20.5, "0.3": 40.25, "0.1": 99.0}, {"0.5": 10.0, "0.3": 44.0, "0.1": None})
SHOWN = {
    "cosine": 0.91, "max_cosine": 0.72, "mean_max_cosine": 0.31, "babel": 2.25, "duplicate_fraction": 0.0625,
    "specific_fraction": 0.375, "artefact_fraction": 0.1875,
}  # fmt: skip


@pytest.fixture
def swept(tmp_path: Path) -> SweepFolder:
    """A sweep of three trials: two that were measured, one that was not."""
    folder = SweepFolder(Store.at(str(tmp_path / "sweep")))
    folder.store.write("sweep.yaml", b"name: small\nwandb: {project: mine}\n")
    for number in (0, 1, 7):
        folder.write_trial(point_record(number))
    for number, bits in enumerate(BITS):
        store = folder.trial_store(f"topk-{number}")
        store.write("measures.json", json.dumps(measures(bits, 1 - number / 2)).encode())
    build_results(folder, folder.store.list_folders("trials"))
    return folder


def cells(page: str, trial: str) -> dict[str, tuple[str, str]]:
    """Value and text of a trial's cells in the page's table, by column."""
    columns = re.findall(r'<th scope="col" data-column="(\w+)"', page)
    (row,) = re.findall(rf'<tr id="row-\d+" data-trial="{trial}"[^>]*>(.*)</tr>', page)
    found = re.findall(r'<td data-value="([^"]*)"[^>]*>(?:<a [^>]*>)?([^<]*)', row)
    return dict(zip(columns, found, strict=True))


def test_the_columns_hold_the_numbers_of_the_documents(swept: SweepFolder) -> None:
    table = read_frontier(swept.store)
    as_csv = pd.read_csv(StringIO(swept.store.read("frontier.csv").decode()))
    expected = SHOWN | {"bits": 40.25, "bits_at_fvu": 0.3, "dense_fraction": 0.125, "fvu_error": 0.0025}
    assert set(expected) == {*MEASURES, "bits_at_fvu"}
    for found in (table.set_index("trial"), as_csv.set_index("trial")):
        assert found.loc["topk-0", list(expected)].to_dict() == pytest.approx(expected)
        assert found.loc["topk-1", ["bits", "babel"]].tolist() == [44.0, 1.125]
        assert found.loc["topk-7", [*MEASURES, "bits_at_fvu"]].isna().all()


def test_bits_are_compared_at_the_smallest_fvu_that_all_reach() -> None:
    documents = [measures(bits) for bits in BITS]
    assert common_distortion(documents) == 0.3
    assert common_distortion(documents[:1]) == 0.1
    poor = measures({"0.5": None, "0.3": None})
    assert common_distortion([*documents, poor]) == 0.3, "the FVU that most reach"
    assert common_distortion([poor]) is None
    assert common_distortion([]) is None


def test_the_report_has_them_as_hidden_columns_and_in_the_trials_section(swept: SweepFolder) -> None:
    page = swept.store.read("report.html").decode()
    row = cells(page, "topk-0")
    assert (row["bits"], row["babel"]) == (("40.25", "40.2"), ("2.25", "2.25"))
    assert cells(page, "topk-7")["babel"] == ("", "-")
    assert "stability" not in row, "no dictionaries of several seeds, no column"
    assert 'data-column="bits" class="number optional">bits at FVU 0.3</th>' in page
    assert 'type="checkbox" id="measures"' in page
    assert page.count("<h3>Measures</h3>") == 2
    assert '<th scope="row">bits per row at FVU 0.3</th><td>40.2</td>' in page
    assert page.count("FVU against k active latents per row (encoded with each k)") == 2


def test_a_sweep_without_measures_reports_without_their_columns(tmp_path: Path) -> None:
    folder = SweepFolder(Store.at(str(tmp_path)))
    folder.write_trial(point_record(0))
    table = build_results(folder, ["topk-0"])
    page = (tmp_path / "report.html").read_text()
    assert table[list(MEASURES)].isna().all().all()
    assert not set(MEASURES) & set(cells(page, "topk-0"))
    assert 'id="measures"' not in page
    assert "<h3>Measures</h3>" not in page


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("likeness", {"cosine": "0.9"}),
        ("coherence", {"babel": [1]}),
        ("curve", {"method": "encode", "points": [{"k": 1}]}),
        ("description_length", {"bits_at_fvu": {"low": 1.0}}),
        ("description_length", {"bits_at_fvu": {"nan": 1.0}}),
    ],
)
def test_a_document_that_is_wrong_is_left_out_in_one_line(
    swept: SweepFolder, section: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = swept.trial_store("topk-0")
    store.write("measures.json", json.dumps(measures(BITS[0]) | {section: value}).encode())
    assert read_measures(store) is None
    assert "\n" not in caplog.messages[0]
    assert section in caplog.messages[0]
    assert build_results(swept, ["topk-0", "topk-1"])["bits"].notna().sum() == 1


def test_an_undefined_value_is_missing_and_a_trial_that_was_stopped_has_none() -> None:
    document = measures({"0.5": 3.0}) | {"likeness": {"cosine": None}}
    stopped = point_record(1, status=STOPPED)
    table = frontier_table([point_record(0), stopped], {"topk-0": document, "topk-1": document}).set_index("trial")
    assert math.isnan(table.loc["topk-0", "cosine"])
    assert table.loc["topk-0", "bits"] == 3.0
    assert math.isnan(table.loc["topk-1", "bits"])


def test_w_and_b_gets_them_in_the_summary_of_each_run(swept: SweepFolder, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    done = CliRunner().invoke(app, ["wandb", "sync", str(swept.store.local_path), "--offline", str(sent)])
    assert done.exit_code == 0, done.output
    found = dict(read_summary(run) for run in (sent / "wandb").glob("offline-run-*"))
    ids = RunIds.of_folder(swept.store)
    measured, other = found[ids.of_trial("topk-0")], found[ids.of_trial("topk-7")]
    expected = SHOWN | {"dense_fraction": 0.125, "bits_at_fvu/0.3": 40.25, "bits_at_fvu/0.1": 99.0, "fvu": 0.3}
    assert {name: measured[f"result/{name}"] for name in expected} == pytest.approx(expected)
    assert "result/babel" not in other


def test_w_and_b_gets_them_when_a_trial_of_a_running_sweep_ends(swept: SweepFolder, tmp_path: Path) -> None:
    runs = WandbRuns(ids=lambda: RunIds("x"), project="p", group="g", folder=str(tmp_path / "live"), mode="offline")
    mirror = WandbMirror(runs=runs)
    trial = SimpleNamespace(
        id="topk-0", name="a", config=SimpleNamespace(to_dict=dict), footprint=SimpleNamespace(workers=1)
    )
    run: Any = SimpleNamespace(folder=swept, trial=trial)
    mirror.started(run)
    mirror.ended(run, swept.read_trial("topk-0"))
    mirror.finish(swept.store.url)
    (folder,) = (tmp_path / "live" / "wandb").glob("offline-run-*")
    assert read_summary(folder)[1]["result/babel"] == 2.25


def test_the_terminal_shows_measures_where_there_is_room(swept: SweepFolder) -> None:
    table = read_frontier(swept.store)

    def shown(width: int) -> str:
        console = Console(width=width, record=True, file=StringIO(), no_color=True)
        console.print(frontier_rich_table(table, width))
        text = console.export_text()
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        return text

    assert "cosine" not in shown(90)
    wide = shown(200)
    assert all(COLUMNS[name].heading in wide for name in MEASURES)
    assert "bits at FVU 0.3" in wide


# FVU against k -----------------------------------------------------------------------------------------------------


def test_fvu_against_k_stands_on_a_logarithmic_axis() -> None:
    svg = fvu_svg(measures({})["curve"]["points"])
    (line,) = re.findall(r'<polyline class="eval" points="([^"]+)"', svg)
    (x0, y0), (x1, y1), (x2, y2) = ([float(v) for v in pair.split(",")] for pair in line.split())
    assert y0 < y1 < y2, "k 2, 8 and 16 with FVU 0.8, 0.4 and 0.2"
    assert (x1 - x0) / (x2 - x1) == pytest.approx(math.log(4) / math.log(2), rel=0.01)
    assert fvu_svg([{"k": 2, "l0": 2.0, "fvu": None}, {"k": None, "l0": 0.0, "fvu": 0.5}]) == ""


# Axes --------------------------------------------------------------------------------------------------------------


def test_only_numeric_columns_are_axes_and_the_refusal_names_them() -> None:
    assert frontier_axes("bits", "cosine") == FrontierAxes("bits", "cosine")
    assert all(COLUMNS[name].better for name in NUMERIC)
    with pytest.raises(UserError, match=r"--x: 'size' is no numeric column; choose one of width, target_l0, l0, fvu"):
        frontier_axes("size", "fvu")
    with pytest.raises(UserError, match="--y: 'status' is no numeric column"):
        frontier_axes("l0", "status")
    with pytest.raises(UserError, match="--y: 'l0' is on the x axis too"):
        frontier_axes("l0", "l0")


def test_the_frontier_over_other_axes_minds_which_way_is_better() -> None:
    rows = pd.DataFrame({"l0": [8.0] * 3, "fvu": [0.2] * 3, "bits": [10.0, 20.0, 30.0], "cosine": [0.5, 0.9, 0.8]})
    assert on_frontier(rows, FrontierAxes("bits", "cosine")).tolist() == [True, True, False]


@pytest.mark.parametrize("axes", [("bits", "cosine"), ("width", "babel"), ("seconds", "stability")])
def test_any_two_columns_are_drawn_and_the_points_lead_to_their_rows(swept: SweepFolder, axes: tuple[str, str]) -> None:
    table = read_frontier(swept.store)
    svg = frontier_svg(table, axes=FrontierAxes(*axes))
    drawn = table[table[axes[0]].notna() & table[axes[1]].notna()]
    points = re.findall(r'<a href="#row-(\d+)"><title>([^<]*)</title>', svg)
    assert sorted(int(row) for row, _ in points) == drawn.index.tolist()
    assert all(COLUMNS[axes[0]].heading in title for _, title in points)
    assert drawn.empty == ("No trial has both seconds and stability yet" in svg)


def test_the_command_draws_them_and_refuses_a_column_in_one_line(swept: SweepFolder) -> None:
    url = str(swept.store.local_path)
    done = CliRunner().invoke(app, ["report", url, "--x", "bits", "--y", "cosine", "--recommend-by", "bits", "--json"])
    assert done.exit_code == 0, done.output
    assert [one["name"] for one in json.loads(done.stdout)["recommended"]] == ["topk-w64-l8-s0"]
    page = swept.store.read("report.html").decode()
    assert "cosine with the row against bits per row at FVU 0.3" in page
    assert 'aria-label="cosine against bits of the finished trials"' in page
    assert "Chosen by fewest bits per row." in page
    refused = CliRunner().invoke(app, ["report", url, "--y", "beauty"])
    assert isinstance(refused.exception, UserError)
    assert str(refused.exception).startswith("--y: 'beauty' is no numeric column; choose one of")


# Recommendations ---------------------------------------------------------------------------------------------------


def test_bits_and_stability_recommend_what_fvu_does_not() -> None:
    records = [point_record(0), point_record(1)]  # FVU .3 and .225, both topk of width 64 at L0 8
    documents = {f"topk-{number}": measures(bits) for number, bits in enumerate(BITS)}
    scores = {
        "seeds": [
            {"trials": ["topk-0"], "score": 0.7, "at_start": 0.95},
            {"trials": ["topk-1"], "score": 0.6, "at_start": None},
        ]
    }
    table = frontier_table(records, documents, scores)
    chosen = {name: recommend(table, by)[0] for name, by in CRITERIA.items()}
    best = {name: one.trial for name, one in chosen.items()}
    assert best == {"fvu": "topk-1", "bits": "topk-0", "stability": "topk-0"}
    assert chosen["bits"].reasons == ["fewest bits per row of 2 at L0 8: 40.2 (at FVU 0.3)"]
    assert chosen["stability"].reasons == ["highest stability over seeds of 2 at L0 8: 0.700"]
    assert chosen["stability"].caveats[-1] == "its seeds began alike (0.95 before training)"
    assert recommend(frontier_table(records), CRITERIA["bits"]) == []
    with pytest.raises(UserError, match="--recommend-by: 'luck' is no criterion; choose one of fvu, bits, stability"):
        criterion("luck")


def test_the_report_says_when_nothing_has_the_value_that_it_should_choose_by(swept: SweepFolder) -> None:
    done = CliRunner().invoke(app, ["report", str(swept.store.local_path), "--recommend-by", "stability"])
    assert done.exit_code == 0, done.output
    page = swept.store.read("report.html").decode()
    assert "Chosen by highest stability over seeds." in page
    assert "No finished trial has this value." in page


def test_the_stability_of_seeds_stands_in_the_row_of_each(tmp_path: Path) -> None:
    folder, trials = full_sweep(tmp_path)
    table = build_results(folder, trials).set_index("trial")
    (group,) = json.loads(folder.store.read("stability.json"))["seeds"]
    assert table["stability"].dropna().to_dict() == dict.fromkeys(group["trials"], group["score"])
    assert set(table["stability_at_start"].dropna()) == {group["at_start"]}
