"""Real sweeps on a real Ray: what they leave behind, how they continue, what they survive."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file
from sweeps import diverging_at, sweep_content, write_dataset, write_sweep
from wandb_offline import read_offline

from lexray.storage.config_file import read_config_file
from lexray.training.identity.versions import NEWEST
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.orchestrate import run_sweep
from lexray.tuning.results.frontier import read_frontier
from lexray.tuning.sweep_plan import SweepPlan, plan_sweep
from lexray.tuning.views.wandb_ids import RunIds
from lexray.tuning.views.wandb_mirror import WandbMirror
from lexray.tuning.views.wandb_runs import WandbRuns

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("sweep") / "data")


def plan(tmp_path: Path, content: dict) -> SweepPlan:
    file = write_sweep(tmp_path / "sweep.yaml", content)
    return plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())


@pytest.fixture(scope="module")
def swept(data, ray_session, tmp_path_factory):
    """A finished sweep of three trials, one of them on two workers, with its W&B view."""
    folder = tmp_path_factory.mktemp("swept")
    content = sweep_content(
        data,
        str(folder / "out"),
        axes={"architecture": ["topk", "relu", "batch_topk"], "width": [64], "target_l0": [4]},
        rules=[{"when": {"architecture": "topk"}, "set": {"workers": 2}}],
    )
    made = plan(folder, content)
    mirror = WandbMirror(
        runs=WandbRuns(
            ids=lambda: RunIds("x"), project="lexray", group="small", folder=str(folder / "out"), mode="offline"
        )
    )
    table = run_sweep(made, [mirror])
    mirror.show_results(made.folder, table)
    return made, table, folder / "out"


def test_every_trial_has_a_result_and_its_files(swept):
    made, table, out = swept
    assert len(table) == len(made.trials) == 3
    assert not set(table["status"]) - {"done", "target missed"}
    assert table.set_index("architecture").loc["topk", "workers"] == 2
    for trial in made.trials:
        folder = out / "trials" / trial.id
        files = {"trial.json", "attempt.json", "metrics.jsonl", "spent.json"}
        files |= {"dictionary", "measures.json", "fired.npy"}
        assert {p.name for p in folder.iterdir()} == files
        measured, result = (json.loads((folder / name).read_text()) for name in ("measures.json", "trial.json"))
        assert measured["fvu"] == pytest.approx(result["result"]["fvu"], rel=1e-4)  # the whole, by one worker alone
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == [10, 20, 30, 40, 50, 60]
    for name in ("sweep.yaml", "frontier.parquet", "frontier.png", "report.html"):
        assert (out / name).stat().st_size > 0


def test_the_parquet_is_the_table_and_the_table_is_what_trials_wrote(swept):
    made, table, out = swept
    read = read_frontier(made.folder.store)
    for trial in made.trials:
        result = json.loads((out / "trials" / trial.id / "trial.json").read_text())["result"]
        for source in (table, read):
            row = source.set_index("trial").loc[trial.id]
            assert (row["l0"], row["fvu"]) == (result["l0"], result["fvu"])
            assert row["fvu"] < 0.9


def test_wandb_holds_what_the_metrics_files_hold(swept):
    made, _, out = swept
    runs = {}
    for folder in (out / "wandb").glob("offline-run-*"):
        run, history = read_offline(folder)
        runs[run["id"]] = run, history
    (of_the_sweep,) = set(runs) - {f"{trial.id}-x" for trial in made.trials}
    assert of_the_sweep.startswith("sweep-")
    assert runs[of_the_sweep][1][0]["frontier.nrows"] == 3
    for trial in made.trials:
        run, history = runs[f"{trial.id}-x"]
        assert run["group"] == "small"
        assert run["dictionary"]["width"] == 64
        logged = [{k: v for k, v in row.items() if not k.startswith("_")} for row in history]
        lines = (out / "trials" / trial.id / "metrics.jsonl").read_text().splitlines()
        assert logged == [json.loads(line) for line in lines]


def test_a_dictionary_gives_the_logged_metrics_in_a_fresh_process_without_ray_or_deepspeed(swept, data):
    made, _, out = swept
    program = f"""
import json, sys
from dataclasses import replace
from lexray.storage.selection import Selection
from lexray.storage.store import Store
from lexray.storage.stream import local_stream
from lexray.storage.windows import StreamSpec
from lexray.training.dictionaries.base import RawRows
from lexray.training.measures.metrics import evaluate
from lexray.training.checkpoint.saved import load_dictionary
spec = StreamSpec(store=Store.at({data!r}), sites=("site",), selection=Selection(part="test", held_out=0.1))
rows = [batch.vectors["site"] for batch in local_stream(spec, batch_rows=64).every_row()]
for folder in sys.argv[1:]:
    print(json.dumps(evaluate(load_dictionary(folder), [RawRows(x, x) for x in rows])))
assert not {{"ray", "deepspeed"}} & set(sys.modules)
"""
    folders = [out / "trials" / trial.id for trial in made.trials]
    command = [sys.executable, "-c", program, *(str(folder / "dictionary") for folder in folders)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for folder, line in zip(folders, output.splitlines(), strict=True):
        measured = json.loads(line)
        logged = json.loads((folder / "trial.json").read_text())["result"]
        assert measured["rows"] == logged["rows"]
        for name in ("fvu", "l0", "explained_variance"):
            assert measured[name] == pytest.approx(logged[name], rel=1e-4)


def test_a_finished_sweep_is_not_trained_again(swept, tmp_path):
    made, table, out = swept
    again = plan_sweep(made.sweep, made.text)
    assert again.unfinished == []
    before = {p: p.stat().st_mtime_ns for p in (out / "trials").rglob("*") if p.is_file()}
    rebuilt = run_sweep(again, [])
    assert rebuilt.equals(table)
    assert {p: p.stat().st_mtime_ns for p in (out / "trials").rglob("*") if p.is_file()} == before


def kill_a_worker_after_a_checkpoint(out: Path, killed: list[int]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(out.glob("trials/*/checkpoints/*/manifest.json")):
        time.sleep(0.05)
    for process in psutil.Process(os.getpid()).children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)
            return


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_ends_with_the_same_weights(data, ray_session, tmp_path):
    changes = {
        "axes": {"architecture": ["batch_topk"], "width": [256], "target_l0": [4]},
        "training": {"rows": 128 * 1500, "lr": 0.003},
        "every": {"log": 100, "evaluate": 100, "checkpoint": 100},
        "wandb": {"mode": "disabled"},
    }
    weights, steps = [], []
    for name in ("undisturbed", "killed"):
        out = tmp_path / name
        made = plan(tmp_path, sweep_content(data, str(out), **changes))
        killed: list[int] = []
        if name == "killed":
            killer = threading.Thread(target=kill_a_worker_after_a_checkpoint, args=(out, killed))
            killer.start()
        table = run_sweep(made, [])
        assert list(table["status"]) != ["failed"], list(table["reason"])
        folder = out / "trials" / made.trials[0].id
        weights.append(load_file(folder / "dictionary" / "dictionary.safetensors"))
        steps.append([json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()])
    killer.join()
    assert killed
    assert steps[0] == steps[1] == list(range(100, 1501, 100))
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])


@pytest.mark.slow
def test_a_trial_that_cannot_train_fails_alone_and_says_why(data, ray_session, tmp_path):
    changes = {
        "axes": {"architecture": ["topk"], "width": [64], "target_l0": [4], "lr": [0.003, 0.5]},
        "training": {"rows": 128 * 40, "clip_norm": 0.0},
        "wandb": {"mode": "disabled"},
    }
    made = plan(tmp_path, sweep_content(data, str(tmp_path / "out"), **changes))
    table = run_sweep(made, [], work=diverging_at(0.5)).set_index("status")
    assert sorted(table.index) == ["done", "failed"]
    assert "is not finite" in table.loc["failed", "reason"]
    # Run again, only the failed one is trained.
    assert [t.config.optimizer.lr for t in plan_sweep(made.sweep, made.text).unfinished] == [0.5]


@pytest.mark.slow
def test_the_command_joins_a_running_cluster(data, ray_session, tmp_path):
    content = sweep_content(data, str(tmp_path / "out"), axes={"architecture": "topk", "width": 64, "target_l0": 4})
    file = write_sweep(tmp_path / "sweep.yaml", content)
    done = subprocess.run(
        [sys.executable, "-m", "lexray", "sweep", file, "--address", ray_session, "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (trial,) = json.loads(done.stdout)["trials"]
    assert trial["status"] == "done"
    assert yaml.safe_load((tmp_path / "out" / "sweep.yaml").read_text()) == {**content, "defaults": NEWEST}
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_interrupted_sweep_says_so_and_continues(data, ray_session, tmp_path):
    changes = {
        "every": {"log": 10, "evaluate": 1000, "checkpoint": 20},
        "training": {"rows": 128 * 6000, "lr": 0.003},
        "axes": {"architecture": "topk", "width": 256, "target_l0": 4},
    }
    file = write_sweep(tmp_path / "sweep.yaml", sweep_content(data, str(tmp_path / "out"), **changes))
    command = [sys.executable, "-m", "lexray", "sweep", file, "--address", ray_session]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob("out/trials/*/checkpoints/*/manifest.json")):
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130, errors
    assert "run the same command again to continue" in errors
    assert "Traceback" not in errors
    second = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=240)
    assert second.returncode == 0, second.stderr
    (trial,) = json.loads(second.stdout)["trials"]
    assert trial["status"] == "done"
    metrics = next(tmp_path.glob("out/trials/*/metrics.jsonl")).read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(10, 6001, 10))


@pytest.mark.slow
def test_data_and_results_on_an_s3_server(ray_session, s3_server, tmp_path):
    import s3fs

    local = tmp_path / "data"
    write_dataset(local)
    s3 = s3fs.S3FileSystem(client_kwargs={"endpoint_url": s3_server})
    s3.mkdir("lexray")
    s3.put(str(local), "lexray/data", recursive=True)
    content = sweep_content("s3://lexray/data", "s3://lexray/out", storage={"endpoint_url": s3_server})
    made = plan(tmp_path, content)
    table = run_sweep(made, [])
    assert not set(table["status"]) - {"done", "target missed"}
    assert plan_sweep(made.sweep, made.text).unfinished == []
    assert s3.exists("lexray/out/frontier.parquet")
    assert s3.exists("lexray/out/report.html")
