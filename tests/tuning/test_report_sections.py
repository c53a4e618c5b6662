"""The report shows what a sweep recommends, how stable it is, and on which data."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sweeps import write_dataset as write_rows

from lexray.storage.manifest import load_manifest
from lexray.storage.store import Store
from lexray.tuning.results.frontier import frontier_table
from lexray.tuning.results.provenance import DATASET_FILE, read_dataset, write_dataset
from lexray.tuning.results.report import REPORT_FILE, write_report
from lexray.tuning.results.report_sections import SHOWN, sections
from lexray.tuning.results.stability import STABILITY_FILE, VERSION
from lexray.tuning.sweep_folder import DONE, TrialRecord


def record(width: int = 64, target: int = 8, *, fvu: float = 0.4, site: str = "layer3") -> TrialRecord:
    name = f"topk-w{width}-l{target}-{site}"
    data = {"inputs": [site], "url": "s3://bucket/rows", "dataset_id": "abc", "held_out": 0.1, "max_norm_ratio": None}
    config = {"dictionary": {"architecture": "topk", "width": width, "target_l0": target}, "data": data}
    result = {"l0": float(target), "fvu": fvu, "explained_variance": 1 - fvu, "dead_fraction": 0.2}
    return TrialRecord(trial=name, name=name, config=config, status=DONE, result=result)


def stable(width: int, score: float, trials: list[str]) -> dict[str, Any]:
    numbers = {"stability": 0.8, "at_start": None, "floor": 0.3, "score": score, "dead": [3, None]}
    return {"architecture": "topk", "width": width, "target_l0": 8, "trials": trials, **numbers}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("told") / "data")


STABILITY = {
    "version": VERSION,
    "seeds": [stable(64, 0.7, ["a", "b"]), stable(128, 0.5, ["c", "d"])],
    "widths": [{**stable(64, 0.7, []), "larger_width": 128, "found": 0.75, "floor": 0.01}],
    "chosen": [{"trials": ["a", "b"]}],
}


def test_stability_is_told_with_its_floor_and_its_choice() -> None:
    shown = sections(frontier_table([record()]), [record()], STABILITY)
    assert [(row.name, row.seeds, row.cells, row.chosen) for row in shown.stable] == [
        ("topk, width 64, L0 8", 2, ["0.80", "-", "0.30", "0.70", "3, -"], True),
        ("topk, width 128, L0 8", 2, ["0.80", "-", "0.30", "0.50", "3, -"], False),
    ]
    assert shown.widths == [("topk, width 64, L0 8 in 128", "75%", "1%")]


def test_data_are_named_once_and_every_value_of_them() -> None:
    records = [record(), record(site="layer6"), record(width=128)]
    other = TrialRecord(trial="x", name="x", config={"data": {"dataset_id": "def"}})
    shown = dict(sections(frontier_table(records), [*records, other], None).data)
    assert shown == {"url": "s3://bucket/rows", "dataset_id": "abc, def", "held_out": "0.1", "max_norm_ratio": "null"}


def test_a_sweep_over_many_sites_says_how_many_recommendations_it_leaves_out() -> None:
    records = [record(site=f"layer{i}") for i in range(SHOWN + 3)]
    shown = sections(frontier_table(records), records, None)
    assert (len(shown.recommended), shown.not_shown) == (SHOWN, 3)


@pytest.mark.parametrize("with_stability", [False, True])
def test_the_page_has_them_and_nothing_empty(with_stability: bool, tmp_path: Any) -> None:
    store = Store.at(str(tmp_path))
    if with_stability:
        store.write(STABILITY_FILE, json.dumps(STABILITY).encode())
    write_report(store, [record(), record(fvu=0.3, target=16)], {}, "name: small")
    page = store.read(REPORT_FILE).decode()
    assert page.count("least FVU of 1 at L0") == 2
    assert "But 20% of its latents are dead" in page
    assert ("<h2>Stability</h2>" in page, "chosen</span>" in page) == (with_stability, with_stability)
    write_report(store, [], {}, "")
    assert "What to look at first" not in store.read(REPORT_FILE).decode()


def test_the_dataset_tells_of_itself_line_by_line(data: str, tmp_path: Any) -> None:
    manifest = load_manifest(Store.at(data))
    provenance = {"model": {"name": "m", "revision": None}, "texts": [{"files": ["a", "b"]}], "tokens": 7, "empty": []}
    store = Store.at(str(tmp_path))
    assert read_dataset(store) is None
    write_dataset(store, data, manifest.model_copy(update={"provenance": provenance}))
    document = read_dataset(store)
    assert document is not None
    assert (document["url"], document["id"]) == (data, manifest.id)
    shown = sections(frontier_table([record()]), [record()], None, document).data
    site = next(iter(manifest.sites))
    width = manifest.sites[site].width
    assert shown[-5:] == [
        ("rows", f"{manifest.rows:,}"),
        (f"site {site}", f"{width} wide, {manifest.sites[site].dtype}"),
        ("model.name", "m"),
        ("texts.0.files", '["a", "b"]'),
        ("tokens", "7"),
    ]


def test_the_page_shows_it_and_links_the_file(data: str, tmp_path: Any) -> None:
    store = Store.at(str(tmp_path))
    write_dataset(store, data, load_manifest(Store.at(data)).model_copy(update={"provenance": {"model": "gpt <2>"}}))
    write_report(store, [record()], {}, "")
    page = store.read(REPORT_FILE).decode()
    assert "gpt &lt;2&gt;" in page
    assert f'href="{DATASET_FILE}"' in page


def test_the_report_says_which_rows_its_numbers_are_of() -> None:
    """A sweep that an older version began has one held-out part for all that was looked at."""
    result = {"l0": 4.0, "fvu": 0.25}
    old = TrialRecord(trial="a", name="a", config={}, status=DONE, result=result)
    new = TrialRecord(trial="b", name="b", config={}, status=DONE, result=result, validation=result)
    table = frontier_table([old, new])
    said = [sections(table, records, None).reported for records in ([new], [old], [old, new], [])]
    assert said[0] == said[3] == "test rows, which nothing in training, stopping or the search has read"
    assert said[1] == "held-out rows, which evaluations, stopping and the search have read too"
    assert said[2].startswith("test rows; 1 of 2 trials are of an older version")
