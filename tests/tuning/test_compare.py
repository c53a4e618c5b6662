"""Two sweeps side by side: who beats whom, and when their numbers do not compare."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_folder import measures
from typer.testing import CliRunner

from lexray.cluster.cli import app
from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.tuning.results.compare import beaten_shares, differences_of_data, matched
from lexray.tuning.results.frontier import frontier_table
from lexray.tuning.results.ties import FvuErrors
from lexray.tuning.sweep_folder import DONE, FAILED, SweepFolder, TrialRecord


def record(name: str, l0: float, fvu: float, *, width: int = 64, status: str = DONE, **data: Any) -> TrialRecord:
    return TrialRecord(
        trial=f"{name}-{l0}-{fvu}",
        name=name,
        config={
            "dictionary": {"architecture": "topk", "width": width, "target_l0": round(l0)},
            "data": {"inputs": ["site"], "dataset_id": "one", "held_out": 0.1, **data},
        },
        status=status,
        result={"l0": l0, "fvu": fvu, "explained_variance": 1 - fvu, "dead_fraction": 0.0} if status == DONE else {},
    )


def tables(first: list[TrialRecord], second: list[TrialRecord]) -> tuple[pd.DataFrame, pd.DataFrame]:
    return frontier_table(first), frontier_table(second)


def test_trials_are_matched_by_name_and_those_of_one_sweep_stay() -> None:
    both = matched(*tables([record("a", 4, 0.4), record("b", 8, 0.3)], [record("a", 4, 0.3), record("c", 16, 0.1)]))
    assert both["name"].tolist() == ["a", "b", "c"]
    assert both["fvu_change"][0] == pytest.approx(-0.25)
    assert both["fvu_change"].isna().tolist() == [False, True, True]
    assert (both["fvu_1"].isna().tolist(), both["fvu_2"].isna().tolist()) == (
        [False, False, True],
        [False, True, False],
    )


def test_a_change_has_the_standard_error_of_the_paired_difference() -> None:
    """Draws of documents that move both FVUs alike cancel: 0.02 of 0.4, plus or minus 0.004 of 0.4."""
    draws, own = [0.38, 0.42, 0.40, 0.40], [0.004, 0.004, -0.004, -0.004]
    found = {
        "first": {"fvu_error": 0.016, "fvu_resamples": draws, "hash": "h"},
        "second": {
            "fvu_error": 0.016,
            "fvu_resamples": [a - 0.02 + b for a, b in zip(draws, own, strict=True)],
            "hash": "h",
        },
    }
    one, two = ([{**vars(record("a", 4, fvu)), "trial": name}] for name, fvu in (("first", 0.4), ("second", 0.38)))
    documents = {name: {"documents": section} for name, section in found.items()}
    frames = [frontier_table([TrialRecord(**made[0])], documents) for made in (one, two)]
    both = matched(*frames, (FvuErrors(documents.get), FvuErrors(documents.get)))
    assert both["fvu_change"].tolist() == pytest.approx([-0.05])
    assert both["change_error"].tolist() == pytest.approx([0.004 * math.sqrt(4 / 3) / 0.4])
    assert matched(*frames)["change_error"].isna().all()


def test_a_point_is_beaten_by_no_larger_l0_and_lower_fvu() -> None:
    first = [record("a", 4, 0.4), record("b", 8, 0.3), record("c", 16, 0.2)]
    second = [record("a", 4, 0.35), record("b", 9, 0.25), record("c", 16, 0.25)]
    (row,) = beaten_shares(*tables(first, second)).to_dict("records")
    assert (row["points_1"], row["points_2"]) == (3, 2)  # the last one of the second is not on its own frontier
    assert row["beaten_1"] == pytest.approx(1 / 3)  # only the first: the second's 0.25 has a larger L0 than 8
    assert row["beaten_2"] == 0
    assert not beaten_shares(*tables(first, first))[["beaten_1", "beaten_2"]].to_numpy().any()


def test_widths_compare_with_themselves_alone_and_failed_trials_not_at_all() -> None:
    first = [record("a", 4, 0.4, width=64), record("b", 4, 0.3, width=128)]
    second = [record("a", 4, 0.1, width=256), record("b", 4, 0.2, width=128), record("x", 4, 0.0, status=FAILED)]
    shares = beaten_shares(*tables(first, second))
    assert shares["width"].tolist() == [128]
    assert beaten_shares(*tables(first, [])).empty


def write(place: Path, records: list[TrialRecord]) -> str:
    folder = SweepFolder(Store.at(str(place)))
    folder.store.write("sweep.yaml", b"name: some\n")
    for one in records:
        folder.write_trial(one)
    return str(place)


def test_the_command_says_it_all_and_warns_of_other_rows(tmp_path: Path) -> None:
    first = write(tmp_path / "first", [record("a", 4, 0.4)])
    second = write(tmp_path / "second", [record("a", 4, 0.3, dataset_id="two")])
    said = CliRunner().invoke(app, ["compare", first, second])
    assert said.exit_code == 0, said.output
    assert "-25.0%" in said.stdout
    assert "the second beats 100% of the first's 1 frontier points, the first 0% of the second's 1" in said.stdout
    assert "dataset_id: one against two" in said.stderr
    found = json.loads(CliRunner().invoke(app, ["compare", first, second, "--json"]).stdout)
    assert found["differences_of_data"] == ["dataset_id: one against two"]
    assert found["frontiers"][0]["beaten_1"] == 1.0
    assert not list((tmp_path / "first").glob("frontier*")), "a sweep is only read"


def test_the_command_calls_what_measured_documents_do_not_tell_apart_tied(tmp_path: Path) -> None:
    """The draws of the two vary by 0.01 and by none: a standard error of 0.01, that is 2.5 % of 0.4."""
    second = record("a", 4, 0.41), record("b", 8, 0.2)
    places = [write(tmp_path / "1", [record("a", 4, 0.4), record("b", 8, 0.3)]), write(tmp_path / "2", list(second))]
    for number, place in enumerate(places):
        folder = SweepFolder(Store.at(place))
        for trial in folder.store.list_folders("trials"):
            document = measures({})
            document["documents"]["fvu_resamples"] = [[0.39, 0.4, 0.41], [0.4, 0.4, 0.4]][number]
            folder.trial_store(trial).write("measures.json", json.dumps(document).encode())
    said = CliRunner().invoke(app, ["compare", *places])
    assert said.exit_code == 0, said.output
    lines = {line.split()[0]: line for line in said.stdout.splitlines() if line.strip()}
    assert lines["a"].rstrip().endswith("+2.5% ±2.5%, tied")
    assert lines["b"].rstrip().endswith("-33.3% ±3.3%")


def test_a_folder_without_a_sweep_is_refused_by_name(tmp_path: Path) -> None:
    first = write(tmp_path / "first", [record("a", 4, 0.4)])
    refused = CliRunner().invoke(app, ["compare", first, str(tmp_path / "nothing")])
    assert isinstance(refused.exception, UserError)
    assert str(refused.exception).startswith(f"file://{tmp_path}/nothing: no sweep there")


def test_results_on_test_rows_do_not_compare_with_those_of_all_held_out_rows(tmp_path: Path) -> None:
    old, new = (SweepFolder(Store.at(str(tmp_path / name))) for name in ("old", "new"))
    old.write_trial(record("a", 4, 0.4))
    new.write_trial(replace(record("a", 4, 0.4), validation={"l0": 4.0, "fvu": 0.41}))
    assert differences_of_data(old, new) == ["reported on: all held-out rows against test rows"]
    assert differences_of_data(new, new) == []
    none = SweepFolder(Store.at(str(tmp_path / "none")))
    assert not any("reported on" in line for line in differences_of_data(none, old)), "there are no results yet"
