"""The dashboard and the targets of infra/observability, held against what a real Ray exports while a sweep trains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards import FOLDER, OF_THE_SCRAPE, dashboard, filled, groups_of, metrics_of, panels, queries
from namespaces import machines, wait_until, why_not
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES
from watched_sweep import Series, WatchedSweep, watched_sweep

from lexray.tuning.ray_backend.publisher import DESCRIPTIONS

REPORT_S = 60.0
"""Several times what Ray takes to export a new metric."""
NOT_HERE = {
    *("ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"),
    *("ray_cluster_idle_nodes", "ray_cluster_pending_nodes", "ray_cluster_failed_nodes"),
}
"""Metrics of GPUs, and of nodes that an autoscaler starts: held against Ray's source alone."""


def test_the_dashboard_has_the_form_that_grafana_imports():
    content = dashboard()
    ids = [panel["id"] for panel in content["panels"]]
    assert len(ids) == len(set(ids))
    assert content["uid"] == "lexray"
    variables = {variable["name"]: variable for variable in content["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert all(variable["datasource"] == source for variable in variables.values() if variable["type"] == "query")
    for panel in panels():
        assert panel["datasource"] == source
        assert panel["title"]
        assert panel["description"]
        assert panel["targets"]
        assert all(target["expr"] and target["datasource"] == source for target in panel["targets"])
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs))


def test_panels_do_not_overlap():
    covered = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & covered, panel["title"]
        covered |= cells


def test_every_query_is_promql_and_shows_the_labels_that_it_keeps():
    for query in queries():
        selected = metrics_of(query.expr)
        assert selected, query.panel
        assert all(labels >= OF_THE_SCRAPE for labels in selected.values()), query.panel
        if groups := groups_of(query.expr):
            assert query.labels_shown == groups, query.panel


def test_the_variables_are_read_from_metrics_that_the_panels_show():
    shown = {name for query in queries() for name in metrics_of(query.expr)}
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
            (name,) = metrics_of(filled(metric))
            assert name in shown
            assert label in {"ray_io_cluster", "sweep", "trial_name"}


def test_the_dashboard_shows_every_metric_of_lexray_and_no_other():
    shown = {name.removeprefix("ray_") for query in queries() for name in metrics_of(query.expr) if "lexray" in name}
    assert shown == set(DESCRIPTIONS)


def test_the_readme_lists_every_metric_of_lexray():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in readme.splitlines() if line.startswith("| `ray_lexray_")]
    assert sorted(listed) == sorted(f"ray_{name}" for name in DESCRIPTIONS)


def test_what_cannot_be_seen_here_has_the_names_and_labels_of_rays_source():
    gauges = {f"ray_{name}": {str(tag) for tag in gauge.view.columns} for name, gauge in METRICS_GAUGES.items()}
    assert gauges.keys() >= NOT_HERE
    for query in queries():
        for name in metrics_of(query.expr).keys() & NOT_HERE:
            assert gauges[name] >= query.labels_shown | groups_of(query.expr), query.panel


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedSweep]:
    if reason := why_not():
        pytest.skip(reason)
    place = tmp_path_factory.mktemp("watched")
    with machines(place) as made, watched_sweep(made, place) as started:
        yield started


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_name_and_label_of_the_dashboard_is_exported(sweep: WatchedSweep):
    wanted: dict[str, set[str]] = {}
    for query in queries():
        selected = metrics_of(query.expr)
        kept = query.labels_shown | groups_of(query.expr)
        for name in selected.keys() - NOT_HERE:
            wanted.setdefault(name, set()).update((selected[name] | kept) - OF_THE_SCRAPE)
    missing = set(wanted)

    def all_there() -> bool:
        labels = {series.name: series.labels.keys() for series in sweep.exported()}
        missing.clear()
        missing.update(name for name, needed in wanted.items() if not labels.get(name, set()) >= needed)
        return not missing

    try:
        wait_until(all_there, "a metric", REPORT_S)
    except AssertionError:
        pytest.fail(f"not exported, or without a label: {sorted(missing)}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_list_of_targets_needs_the_token_and_the_metrics_do_not(sweep: WatchedSweep):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        sweep.targets(token=None)
    hosts = {target.partition(":")[0] for target in sweep.targets(token=sweep.machines.token)}
    assert hosts >= {sweep.head, sweep.machines.addresses["worker"]}
    assert sweep.exported()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_metrics_of_a_trial_say_what_it_logged(sweep: WatchedSweep):
    def of_a_trial() -> dict[str, Series]:
        found = [s for s in sweep.exported() if s.labels.get("architecture") == "topk" and "lexray" in s.name]
        return {series.name.removeprefix("ray_lexray_"): series for series in found}

    def says_what_was_logged() -> bool:
        found = of_a_trial()
        if not {"rows_total", "fvu"} <= found.keys():
            return False
        rows, trial = found["rows_total"].value, found["rows_total"].labels["trial"]
        wait_until(lambda: sweep.logged(trial)[-1]["rows"] >= rows, "the record of these rows")
        records = [record for record in sweep.logged(trial) if record["rows"] <= rows]
        seconds = [1280 / record["perf/rows_per_s"] for record in records]
        waits = [record["data/wait"] * s for record, s in zip(records, seconds, strict=True)]
        expected = {"rows_total": rows, "steps_total": rows / 128} | {
            "step_seconds_total": sum(seconds),
            "data_wait_seconds_total": sum(waits),
            "fvu": records[-1]["train/fvu"],
            "l0": records[-1]["train/l0"],
        }
        return records[-1]["rows"] == rows and {name: found[name].value for name in expected} == pytest.approx(expected)

    wait_until(says_what_was_logged, "an export that equals what was logged", REPORT_S)


def prometheus() -> str:
    """A Prometheus of this machine: `apt-get install prometheus`, or the program that LEXRAY_PROMETHEUS names."""
    found = shutil.which(os.environ.get("LEXRAY_PROMETHEUS", "prometheus"))
    if found is None:
        pytest.skip("prometheus is not installed: queries are held against names and labels alone")
    return found


def configured(sweep: WatchedSweep, folder: Path) -> Path:
    """The file that is shipped, for this head and in a hurry."""
    text = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
    content = yaml.safe_load(text.replace("127.0.0.1:8265", f"{sweep.head}:8265"))
    content["global"]["scrape_interval"] = content["global"]["scrape_timeout"] = "3s"
    content["scrape_configs"][0]["http_sd_configs"][0]["refresh_interval"] = "2s"
    (folder / "ray-token").write_text(sweep.machines.token)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(content))
    return folder / "prometheus.yml"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prometheus_finds_the_nodes_and_answers_every_query_of_the_dashboard(sweep: WatchedSweep, tmp_path: Path):
    listen = f"10.83.{sweep.machines.number}.1:9090"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                prometheus(), f"--config.file={configured(sweep, tmp_path)}",
                f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={listen}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip

    def asked(path: str, **values: str) -> Any:
        url = f"http://{listen}/api/v1/{path}?{urllib.parse.urlencode(values)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def targets() -> list[dict[str, Any]]:
        return list(asked("targets")["activeTargets"])

    def trials_with_speed() -> set[str]:
        (speed,) = (query for query in queries() if query.panel == "Rows per second")
        return {answer["metric"]["trial_name"] for answer in asked("query", query=speed.expr)["result"]}

    def without_answer() -> list[str]:
        return [
            query.panel
            for query in queries()
            if not metrics_of(query.expr).keys() & NOT_HERE and not asked("query", query=query.expr)["result"]
        ]

    def all_answered() -> bool:
        assert server.poll() is None, (tmp_path / "log").read_text(errors="replace")[-3000:]
        try:
            return not without_answer()
        except urllib.error.URLError:
            return False

    try:
        try:
            wait_until(all_answered, "an answer", 2 * REPORT_S)
        except AssertionError:
            pytest.fail(f"without an answer: {without_answer()}")
        wait_until(lambda: {target["health"] for target in targets()} == {"up"}, "the targets", REPORT_S)
        assert {target["labels"]["ray_io_cluster"] for target in targets()} == {"lexray"}
        wait_until(lambda: trials_with_speed() == {"topk-w64-l4", "relu-w64-l4"}, "the speed of both trials", REPORT_S)
        for query in queries():
            for answer in asked("query", query=query.expr)["result"]:
                assert answer["metric"].keys() >= query.labels_shown, query.panel
    finally:
        server.terminate()
        server.wait(timeout=20)
