"""What a sweep leaves behind says the same thing everywhere, needs no network, and survives any content."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from contrast import contrast, parse_hex
from matplotlib.image import imread

from lexray.storage.store import Store
from lexray.tuning.results.columns import COLUMNS, OPTIONAL, WHERE_KNOWN, format_cell
from lexray.tuning.results.frontier import frontier_table, read_frontier
from lexray.tuning.results.plot import NARROW_IN, frontier_figure, frontier_svg, width_colours
from lexray.tuning.results.report import build_results, duration, write_report
from lexray.tuning.results.report_sections import flatten
from lexray.tuning.sweep_folder import DONE, FAILED, PENDING, TARGET_MISSED, SweepFolder, TrialRecord

EVIL = "<script>alert('&\"')</script><img src=x>"
SWEEP = "name: minilm\ndictionary:\n  width: [768, 1536]  # <b>&amp;\n"


class Report(HTMLParser):
    """The parts of a report that the tests read back."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: dict[str, list[tuple[str, str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._trial: str | None = None
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag == "tr":
            self._trial = values.get("data-trial")
        if tag == "td" and self._trial:
            self._cell = True
            self.cells.setdefault(self._trial, []).append((values["data-value"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag != "td"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell and self._trial:
            value, text = self.cells[self._trial][-1]
            self.cells[self._trial][-1] = (value, text + data)

    def columns(self) -> list[str]:
        return [values["data-column"] or "" for tag, values in self.tags if tag == "th" and "data-column" in values]


def record(number: int, status: str = DONE, **fields: Any) -> TrialRecord:
    fvu = 0.9 / (number + 3)
    measured = {"l0": 7.3 * (number + 1), "fvu": fvu, "explained_variance": 1 - fvu, "dead_fraction": number / 97}
    architecture = ("relu", "topk", "batch_topk")[number % 3]
    dictionary = {"architecture": architecture, "width": (768, 1536)[number % 2], "target_l0": 8.0 * (number + 1)}
    values: dict[str, Any] = {
        "trial": f"{number:012x}",
        "name": f"{architecture}-{number}",
        "config": {"dictionary": dictionary, "optimizer": {"lr": 3e-4, "betas": [0.9, 0.999]}, "rows": 1000},
        "status": status,
        "result": measured if status in (DONE, TARGET_MISSED) else {},
        "timing": {"total_s": 100.0 + number / 3, "train_s": 60.0, "rows_per_s": 12345.678} if status == DONE else {},
    }
    return TrialRecord(**values | fields)


def log(count: int) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(1, count + 1):
        records.append(
            {"step": step, "rows": 100 * step, "train/fvu": 1 / step, "train/l0": 9.0, "train/loss": math.nan}
        )
        if step % 10 == 0:
            records[-1] |= {"eval/fvu": 1 / step, "eval/dead_fraction": 0.1, "perf/rows_per_s": 5e4}
    return records


def sweep_folder(path: Path, records: list[TrialRecord], logged: int = 30) -> SweepFolder:
    folder = SweepFolder(Store.at(str(path)))
    folder.store.write("sweep.yaml", SWEEP.encode())
    for item in records:
        folder.write_trial(item)
        lines = [json.dumps(line) for line in log(logged)]
        folder.trial_store(item.trial).write("metrics.jsonl", "\n".join(lines).encode())
    return folder


def read_report(folder: SweepFolder) -> Report:
    return Report(folder.store.read("report.html").decode())


def pixels(png: bytes) -> tuple[int, int]:
    height, width = imread(BytesIO(png), format="png").shape[:2]
    return width, height


MIXED = [record(0), record(1), record(2, TARGET_MISSED), record(3, FAILED, reason=EVIL), record(4, PENDING), record(5)]


def test_table_parquet_and_report_agree(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, MIXED)
    table = build_results(folder, [item.trial for item in MIXED])
    pd.testing.assert_frame_equal(read_frontier(folder.store), table, check_exact=True)
    report = read_report(folder)
    assert list(report.cells) == table["trial"].tolist()
    columns = report.columns()
    unseen = {"trial", "reason", "bits_at_fvu", "configuration", *OPTIONAL, *WHERE_KNOWN}
    assert set(COLUMNS) - set(columns) == unseen, "nothing was measured"
    for row in table.to_dict("records"):
        for column, (value, text) in zip(columns, report.cells[row["trial"]], strict=True):
            assert text == format_cell(column, row[column])
            if COLUMNS[column].dtype == "float64":
                assert (float(value) if value else None) == (None if pd.isna(row[column]) else row[column])


def test_the_picture_of_a_sweep_decodes(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, MIXED)
    build_results(folder, [item.trial for item in MIXED])
    assert pixels(folder.store.read("frontier.png")) == (1200, 800)


def test_the_report_asks_nothing_of_the_network(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, MIXED)
    build_results(folder, [item.trial for item in MIXED])
    report = read_report(folder)
    for tag, values in report.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            place = values.get(name) or "#"
            is_link_to_file = tag == "a" and name == "href" and re.fullmatch(r"[\w.%/-]+", place)
            assert place.startswith(("#", "data:,")) or is_link_to_file, (tag, values)
    text = folder.store.read("report.html").decode()
    assert not re.search(r"@import|url\((?!#)", text)
    ids = [values["id"] for _, values in report.tags if "id" in values]
    assert len(ids) == len(set(ids))


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile = record(0, name=EVIL, reason=EVIL, config={"dictionary": {"architecture": EVIL, "width": 1}, EVIL: EVIL})
    store = Store.at(str(tmp_path))
    write_report(store, [hostile], {}, SWEEP + EVIL, title=EVIL)
    report = Report(store.read("report.html").decode())
    assert [tag for tag, _ in report.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in report.tags]
    assert SWEEP + EVIL in report.text


def test_each_trial_tells_status_reason_configuration_and_how_to_load_it(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, MIXED)
    build_results(folder, [item.trial for item in MIXED])
    report = read_report(folder)
    assert EVIL in report.text
    assert "optimizer.betas" in report.text
    assert f"load_dictionary('{tmp_path}/trials/{MIXED[0].trial}/dictionary')" in report.text
    assert report.text.count("dictionary.encode(x)") == 4
    assert [tag for tag, _ in report.tags].count("details") == len(MIXED)
    assert "minilm" in report.text


def test_the_summary_counts_trials_and_tells_the_share_of_training(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, [record(0), record(3)], logged=10)
    build_results(folder, [record(0).trial, record(3).trial])
    summary = read_report(folder).text.split("Frontier")[0].split("dictionaries, in")[1].split()
    joined = " ".join(summary)
    assert "trials 2" in joined
    assert "done 2" in joined
    assert "rows, all trials 2k" in joined
    assert "wall time, all trials 3 min" in joined
    assert "training steps 60%" in joined


@pytest.mark.parametrize("records", [[], [record(0)], [record(0, FAILED)]], ids=["none", "one", "one failed"])
def test_small_sweeps_have_results(tmp_path: Path, records: list[TrialRecord]) -> None:
    folder = sweep_folder(tmp_path, records, logged=0)
    assert len(build_results(folder, [item.trial for item in records])) == len(records)
    assert list(read_report(folder).cells) == [item.trial for item in records]
    assert pixels(folder.store.read("frontier.png")) == (1200, 800)


def test_a_trial_that_never_started_is_a_pending_row(tmp_path: Path) -> None:
    folder = SweepFolder(Store.at(str(tmp_path)))
    table = build_results(folder, ["0123456789ab"])
    assert table["status"].tolist() == [PENDING]
    assert read_report(folder).cells["0123456789ab"][0] == ("0123456789ab", "0123456789ab")


def test_pictures_of_odd_results_are_drawn() -> None:
    odd = [
        record(0, result={"l0": 0.0, "fvu": 1.0}),
        record(2, result={"l0": 16.0, "fvu": math.nan}),
        record(4, result={"l0": 16.0, "fvu": 0.001}),
        record(6, result={"l0": 16.01, "fvu": 50.0}),
    ]
    assert pixels(frontier_figure(frontier_table(odd), size_in=NARROW_IN)) == (420, 560)
    assert "2 of 4 trials" in frontier_svg(frontier_table(odd))
    assert "No trial has finished yet" in frontier_svg(frontier_table(odd[:2]))


def test_missed_targets_are_hollow_and_named() -> None:
    missed, done = frontier_table([record(0, TARGET_MISSED)]), frontier_table([record(0)])
    assert "target missed" in frontier_svg(missed)
    assert "target missed" not in frontier_svg(done)


def test_every_width_has_its_colour_and_each_is_seen_on_both_grounds() -> None:
    colours = width_colours([2**exponent for exponent in range(20)])
    assert len(set(colours.values())) == 20
    for colour in colours.values():
        assert contrast(parse_hex(colour), parse_hex("#ffffff")) > 3
        assert contrast(parse_hex(colour), parse_hex("#15191e")) > 3


def test_nested_values_become_dotted_names() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": [1, None], "f": "x", "g": True}) == {
        "a.b.c": "1",
        "a.d": "{}",
        "e": "[1, null]",
        "f": "x",
        "g": "true",
    }


def test_durations_are_told_in_their_own_unit() -> None:
    assert [duration(s) for s in (1.25, 59.0, 90, 4000, 36000)] == [
        "1.2 s",
        "59.0 s",
        "2 min",
        "1 h 07 min",
        "10 h 00 min",
    ]


def test_a_trial_with_a_curve_is_several_rows_and_points_but_told_once(tmp_path: Path) -> None:
    point = {"k": 4.0, "l0": 4.0, "fvu": 0.5, "explained_variance": 0.5, "dead_fraction": 0.0}
    made = record(0, curve=[point, {**point, "k": 2.0, "l0": 2.0, "fvu": 0.7}])
    store = Store.at(str(tmp_path))
    write_report(store, [made], {}, SWEEP)
    text = store.read("report.html").decode()
    assert len(Report(text).tags) > 0
    assert text.count(f"{made.name}@4") >= 1
    assert text.count(f"load_dictionary(&#39;{tmp_path}/trials/{made.trial}/dictionary&#39;)") == 1
    assert "1 of 1 trials have a result" in text
