"""What a reader finds in the report's page: points that tell of their trials, histograms, costs, seeds, links."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from contrast import AA_TEXT, contrast, parse_hex
from report_folder import DATA_FILES, Links, firing, full_sweep, point_record

from lexray.storage.store import Store
from lexray.tuning.endings.budget import Usage
from lexray.tuning.file.resources import PricesBlock
from lexray.tuning.results import report
from lexray.tuning.results.costs import costs
from lexray.tuning.results.curves import firing_svg
from lexray.tuning.results.frontier import frontier_table
from lexray.tuning.results.plot import frontier_svg
from lexray.tuning.results.report import build_results, write_report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep's folder and its report."""
    place = tmp_path_factory.mktemp("sweep")
    folder, trials = full_sweep(place)
    build_results(folder, trials)
    return place, (place / "report.html").read_text()


def test_every_point_of_the_frontier_lies_on_its_marker_tells_of_its_trial_and_leads_to_its_row() -> None:
    table = frontier_table([point_record(number) for number in range(9)])
    svg = frontier_svg(table)
    markers = {(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg)}
    points = re.findall(r'<a href="#row-(\d+)"><title>([^<]*)</title><circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert sorted(int(row) for row, *_ in points) == table.index[table["fvu"].notna()].tolist()
    for row, title, x, y in points:
        trial = table.iloc[int(row)]
        assert title.splitlines() == [
            trial["name"],
            f"L0 {trial['l0']:.2f}, FVU {trial['fvu']:.4f}",
            f"dead {trial['dead_fraction']:.1%}, {trial['status']}",
        ]
        assert min(abs(float(x) - a) + abs(float(y) - b) for a, b in markers) < 0.2
    places = [float(x) for *_, x, _ in points]
    assert places == sorted(places)


def test_every_link_of_the_page_leads_somewhere(page: tuple[Path, str]) -> None:
    place, text = page
    links = Links(text)
    inside = {target[1:] for target in links.targets if target.startswith("#")}
    assert inside <= links.ids
    files = {unquote(target) for target in links.targets if not target.startswith("#")}
    assert {"frontier.png", "frontier.svg", "frontier.parquet", "frontier.csv", "sweep.yaml"} <= files
    missing = {file for file in files if not (place / file).exists()}
    assert missing == set()
    assert {file.split("/", 2)[2] for file in files if file.startswith("trials/")} >= DATA_FILES


def test_every_measured_trial_has_its_histogram_and_no_other(page: tuple[Path, str]) -> None:
    _, text = page
    assert text.count("<h3>How often latents fire</h3>") == 6
    assert "25.0% never, 12.5% in more than 10% of the rows" in text


def test_bars_stand_for_latents_and_dense_ones_are_told_apart() -> None:
    svg = firing_svg(firing({-3.0: 10, -1.25: 5, -1.0: 20}))
    bars = re.findall(r'class="(bar[^"]*)" d="M([\d.]+) 148V([\d.]+)H([\d.]+)V148z"', svg)
    assert [name for name, *_ in bars] == ["bar", "bar", "bar dense"]
    heights = [148 - float(top) for _, _, top, _ in bars]
    assert heights == pytest.approx([heights[2] / 2, heights[2] / 4, heights[2]], abs=0.1)
    assert all(46 <= float(left) < float(right) <= 312 for _, left, _, right in bars)
    assert firing_svg(firing({})) == ""


def test_latents_rarer_than_the_axis_widen_it() -> None:
    svg = firing_svg(firing({-7.0: 3}))
    (left,) = re.findall(r'class="bar" d="M([\d.]+)', svg)
    assert float(left) >= 46


def test_costs_add_up_and_know_the_prices() -> None:
    records = [point_record(number) for number in range(6)]
    spent = {record.trial: Usage(cpu_s=3600.0, gpu_s=7200.0) for record in records[:4]}
    found = costs(records, spent, PricesBlock(cpu_hour=0.5, gpu_hour=2))
    *parts, everything = found
    assert (everything.trials, everything.cpu_hours, everything.gpu_hours, everything.money) == (6, 4.0, 8.0, 18.0)
    for name in ("trials", "wall_s", "train_s", "cpu_hours", "gpu_hours", "money"):
        assert sum(getattr(part, name) for part in parts) == pytest.approx(getattr(everything, name))
    assert costs(records, spent)[-1].money is None
    assert costs([], {}) == []


def test_the_page_has_the_costs_by_the_sweep_files_prices(page: tuple[Path, str]) -> None:
    _, text = page
    total = text.split("<h2>Cost</h2>")[1].split("</table>")[0].split('scope="row">all</th>')[1]
    assert re.findall(r"<td>([^<]*)</td>", total)[-3:] == ["6.00", "3.00", "9.00 EUR"]


def test_seeds_are_held_against_each_other(page: tuple[Path, str]) -> None:
    _, text = page
    matrix = text.split("Seed against seed: topk, width 64, L0 8</h3>")[1].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", matrix.split("<tbody>")[1])
    assert [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in rows] == [
        ["0", "", "0.91", "0.82"],
        ["1", "0.91", "", "-"],
        ["2", "0.82", "-", ""],
    ]


def test_a_broken_sweep_file_does_not_keep_anyone_from_a_report(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "mine"))
    write_report(store, [point_record(0)], {}, "name: [")
    assert "<h1>mine</h1>" in store.read("report.html").decode()


def test_text_has_the_contrast_of_aa_on_every_ground_in_light_and_dark() -> None:
    template = (Path(report.__file__).parent / "report.html.j2").read_text()
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", template, re.S)
    )
    assert set(light) == set(dark)
    texts, grounds = ("ink", "soft", "accent", "good", "warn", "bad"), ("paper", "panel", "mark")
    for colours, text, ground in product((light, dark), texts, grounds):
        assert contrast(parse_hex(colours[text]), parse_hex(colours[ground])) >= AA_TEXT, (text, ground)
    used = set(re.findall(r"[; {]color: var\(--(\w+)\)", template))
    assert used <= set(texts)
    assert set(re.findall(r"background: var\(--(\w+)\)", template)) <= set(grounds)


def test_the_size_of_the_page_is_bounded_by_its_trials(tmp_path: Path) -> None:
    def written(logged: int) -> int:
        store = Store.at(str(tmp_path / str(logged)))
        records = [point_record(number) for number in range(3)]
        lines = [
            {"rows": n, "train/fvu": 1 / (n + 1), "train/l0": n % 7, "eval/fvu": n % 3, "perf/rows_per_s": n % 11}
            for n in range(logged)
        ]
        write_report(store, records, {record.trial: lines for record in records}, "")
        return store.size("report.html") or 0

    assert written(2000) < 1.1 * written(500)
    assert written(2000) < 3 * 50_000 + 100_000


def test_stability_without_numbers_of_pairs_has_no_matrix(tmp_path: Path) -> None:
    document: dict[str, Any] = json.loads(json.dumps({"version": 2, "seeds": [], "widths": [], "chosen": []}))
    store = Store.at(str(tmp_path))
    store.write("stability.json", json.dumps(document).encode())
    write_report(store, [point_record(0)], {}, "")
    assert "Seed against seed" not in store.read("report.html").decode()
