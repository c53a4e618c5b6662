"""`lexray status`, `logs`, `stop`, `list`: from the sweep's folder alone, and the truth when its driver is gone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_programs import ADashboard
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lexray.cluster.follow.logs import gained, pieces
from lexray.cluster.follow.resolve import SweepRef
from lexray.cluster.follow.stop import stop
from lexray.cluster.follow.sweep_status import sweep_status
from lexray.storage.store import Store
from lexray.tuning.driver import Driver
from lexray.tuning.driver_record import DriverRecord, read_driver, write_driver
from lexray.tuning.endings.budget import BY_HAND, read_ending
from lexray.tuning.sweep_folder import DONE, FAILED, PENDING, RUNNING, STOPPED, SweepFolder, TrialRecord

STEPS, BATCH_ROWS = 1000, 128


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """Five trials: one done, one stopped early, two running, one that has not begun."""
    made = SweepFolder(Store.at(str(tmp_path / "runs" / "widths")))
    made.store.write("sweep.yaml", b"name: widths\n")
    names = ["a-1", "b-1", "c-1", "d-1", "e-1"]
    planned = [{"id": f"{name}-0{name[0]}", "name": name, "steps": STEPS} for name in names]
    made.store.write("plan.json", json.dumps({"trials": planned}).encode())
    for trial, status in zip(planned, (DONE, STOPPED, RUNNING, RUNNING), strict=False):
        config = {"data": {"batch_rows": BATCH_ROWS}, "rows": STEPS * BATCH_ROWS}
        made.write_trial(TrialRecord(trial=trial["id"], name=trial["name"], config=config, status=status))
    write_metrics(made, "b-1-0b", 300)
    write_metrics(made, "c-1-0c", 500, **{"perf/rows_per_s": 1000.0, "data/wait": 0.25})
    write_metrics(made, "d-1-0d", 100, **{"perf/rows_per_s": 600.0, "data/wait": 0.05})
    return made


def write_metrics(folder: SweepFolder, trial: str, last: int, **values: float) -> None:
    lines = [json.dumps({"step": step, "train/l0": 4.0, **values}) for step in range(100, last + 1, 100)]
    folder.trial_store(trial).write("metrics.jsonl", ("\n".join(lines) + "\n").encode())


MACHINE = "0123456789abcdef"


def driven(folder: SweepFolder, *, seen_ago_s: float = 0.0, **changes: Any) -> DriverRecord:
    now_s = time.time()
    fields: dict[str, Any] = {
        "claim": "c",
        "machine": MACHINE,
        "started_s": now_s - 900,
        "seen_s": now_s - seen_ago_s,
    }
    record = DriverRecord(**{**fields, **changes})
    write_driver(folder.store, record)
    return record


def test_a_running_sweep_tells_trials_steps_speed_waiting_and_links(folder, lexray):
    driven(folder, waiting=["d-2 waits for 2 x 8-GPU nodes, 7 min"], links={"c-1-0c": "https://w.ai/me/p/runs/c"})
    code, out, err = lexray("status", folder.store.url)
    assert (code, err) == (0, "")
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert "running on machine 01234567" in lines["state"]
    assert "1 done, 1 stopped early, 2 running, 1 pending" in lines["trials"]
    assert "1,900 of 4,300" in lines["steps"]
    assert "1,600 rows/s, 25% waiting for data" in lines["speed"]
    assert "3 min at this speed" in lines["left"], "2400 steps of 128 rows at 1600 rows/s"
    assert "2 x 8-GPU nodes, 7 min" in lines["waiting"]
    assert "https://w.ai/me/p" in lines["W&B"]


def test_the_document_of_a_sweep_is_whole(folder, lexray):
    driven(folder)
    code, out, _ = lexray("status", folder.store.url, "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["state"], document["steps_done"], document["steps"]) == ("running", 1900, 4300)
    assert [trial["step"] for trial in document["trials"]] == [1000, 300, 500, 100, 0]
    assert document["trials"][4]["status"] == PENDING
    assert document["left_s"] == pytest.approx(2400 * BATCH_ROWS / 1600)


def test_a_driver_that_is_silent_is_lost_and_its_trials_do_not_run(folder, lexray):
    driven(folder, seen_ago_s=2 * 3600 + 60)
    code, out, _ = lexray("status", folder.store.url)
    assert code == 0
    assert f"last seen 2 h ago; `lexray resume {folder.store.url}" in out
    assert "2 left" in out
    assert "rows/s" not in out.split("trial ")[0], "nothing is as fast as it was"
    code, out, _ = lexray("status", folder.store.url, "--json")
    assert json.loads(out)["state"] == "lost"


@pytest.mark.parametrize(("state", "reason"), [("failed", "output: no"), ("interrupted", ""), ("ended", "")])
def test_an_ended_driver_says_how_and_what_goes_on(folder, lexray, state, reason):
    driven(folder, state=state, reason=reason, seen_ago_s=300)
    _, out, _ = lexray("status", folder.store.url)
    assert f"{state} 5 min ago{': ' if reason else ''}{reason}; `lexray resume" in out


def test_a_sweep_that_never_had_a_driver_and_a_folder_without_one_are_told_apart(folder, lexray, tmp_path):
    _, out, _ = lexray("status", folder.store.url)
    assert "nobody runs it" in out
    code, out, err = lexray("status", str(tmp_path / "elsewhere"))
    assert (code, out) == (2, "")
    assert "no sweep there" in err
    code, _, err = lexray("status", "lexray-widths-12345678")
    assert code == 2
    assert "give --address or --cluster, or the sweep's url" in err


def test_of_many_trials_those_that_run_are_listed(folder, lexray):
    for number in range(60):
        folder.write_trial(TrialRecord(trial=f"z-{number}", name=f"z-{number}", config={}, status=DONE))
    driven(folder)
    _, out, _ = lexray("status", folder.store.url)
    assert "and 61 done, 1 stopped early, 1 pending" in out
    assert len(out.splitlines()) < 20


def test_the_end_of_a_long_metrics_file_is_enough(folder):
    driven(folder)
    write_metrics(folder, "c-1-0c", 500_000, **{"perf/rows_per_s": 10.0})
    trial = sweep_status(folder, time.time()).trials[2]
    assert (trial.step, trial.rows_per_s) == (500_000, 10.0)


def test_logs_of_driver_and_trial_outlive_the_cluster(folder, lexray):
    folder.store.write("log.txt", b"2026-01-01 00:00:00 hello\n")
    code, out, _ = lexray("logs", folder.store.url)
    assert (code, out) == (0, "2026-01-01 00:00:00 hello\n")
    code, out, _ = lexray("logs", folder.store.url, "c-1")
    assert out.splitlines()[-2:] == ["step 500: L0 4, rows/s 1,000, data wait 0.25", "c-1: running"]
    code, out, _ = lexray("logs", folder.store.url, "c-1", "--json")
    assert [record["step"] for record in json.loads(out)["records"]] == [100, 200, 300, 400, 500]
    code, _, err = lexray("logs", folder.store.url, "c-1-0x")
    assert code == 2
    assert "did you mean 'c-1-0c'?" in err


def test_a_follower_whose_driver_dies_is_told_how_to_go_on(folder, lexray):
    folder.store.write("log.txt", b"hello\n")
    driven(folder, seen_ago_s=100)
    code, _, err = lexray("logs", folder.store.url, "-f")
    assert code == 1
    assert err.count("\n") == 1
    assert f"last seen 100 s ago; what was trained is saved, go on by `lexray resume {folder.store.url}" in err


def test_a_follower_of_a_sweep_that_ends_ends_too(folder, lexray):
    folder.store.write("log.txt", b"hello\n")
    driven(folder, state="ended")
    assert lexray("logs", folder.store.url, "-f") == (0, "hello\n", "")


@given(st.lists(st.integers(1, 5), max_size=20), st.integers(10, 40))
def test_a_follower_sees_each_line_once_although_the_beginning_is_cut_off(sizes, kept):
    lines = [f"line {number}\n" for number in range(sum(sizes))]
    ends = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    texts = iter(["".join(lines[max(0, end - kept) : end]) for end in ends])
    goes_on = iter([True] * (len(ends) - 1) + [False])
    seen = list(pieces(lambda: next(texts), lambda: next(goes_on), sleep=lambda _: None))
    assert "".join(seen) == "".join(lines)


def test_text_that_has_nothing_in_common_is_new_altogether():
    assert gained("a\nb\n", "c\nd\n") == "c\nd\n"
    assert gained("", "a\n") == "a\n"


def quiet() -> Console:
    return Console(quiet=True)


def test_stop_waits_until_a_driver_has_saved_and_ended(folder):
    begun = threading.Event()

    def drive() -> None:  # as a sweep does: end when word is left
        with Driver(store=folder.store, beat_s=0.05):
            begun.set()
            while read_ending(folder) != BY_HAND:
                time.sleep(0.05)

    driver = threading.Thread(target=drive)
    driver.start()
    assert begun.wait(30)
    stopped = stop(
        SweepRef(url=folder.store.url), None, force=False, messages=quiet(), sleep=lambda _: time.sleep(0.05)
    )
    driver.join(30)
    assert (stopped.state, stopped.job) == ("ended", "")


def test_a_driver_that_does_not_end_is_said_to_run_and_exit_code_1(folder, lexray, monkeypatch):
    record = driven(folder)
    clock = iter(range(int(record.seen_s), int(record.seen_s) + 10_000))

    def sleep(_: float) -> None:
        write_driver(folder.store, replace(record, seen_s=time.time() + 10_000))

    stopped = stop(
        SweepRef(url=folder.store.url),
        None,
        force=False,
        messages=quiet(),
        clock=lambda: float(next(clock)),
        sleep=sleep,
    )
    assert stopped.state == "running"
    assert 60 <= stopped.seconds <= 90
    assert read_ending(folder) == BY_HAND, "it ends as soon as it looks"


def test_nobody_is_asked_to_stop_where_nobody_runs(folder, lexray):
    code, out, _ = lexray("stop", folder.store.url)
    assert code == 0
    assert "nobody runs it" in out
    driven(folder, seen_ago_s=1000)
    code, out, _ = lexray("stop", folder.store.url, "--json")
    assert (code, json.loads(out)["state"]) == (0, "lost")
    assert not folder.store.exists("ending.json")
    code, _, err = lexray("stop", folder.store.url, "--force")
    assert code == 2
    assert "give --address or --cluster, too" in err


def test_sweeps_below_a_folder_are_listed_with_their_state(folder, lexray, tmp_path):
    other = SweepFolder(Store.at(str(tmp_path / "runs" / "deep" / "sweep")))
    other.store.write("sweep.yaml", b"")
    other.write_trial(TrialRecord(trial="x", name="x", config={}, status=FAILED))
    driven(other, state="failed")
    code, out, _ = lexray("list", str(tmp_path / "runs"), "--json")
    listed = {Path(sweep["url"]).name: (sweep["state"], sweep["counts"]) for sweep in json.loads(out)}
    assert code == 0
    assert listed == {
        "sweep": ("failed", {"failed": 1}),
        "widths": ("unknown", {"done": 1, "stopped early": 1, "running": 2}),
    }
    code, out, _ = lexray("list", str(tmp_path / "runs"))
    assert str(tmp_path) in out
    assert lexray("list", str(tmp_path / "nothing")) == (0, "no sweeps\n", "")
    code, _, err = lexray("list")
    assert code == 2
    assert "what to list?" in err


@pytest.fixture
def job_server(folder):
    """Knows one job of the sweep, which runs until it is stopped."""
    server = ADashboard()
    job = {"submission_id": "lexray-widths-1", "status": "RUNNING", "metadata": {"lexray_output": folder.store.url}}

    def stopped() -> tuple[int, str]:
        job["status"] = "STOPPED"
        return 200, json.dumps({"stopped": True})

    server.routes |= {
        "/api/jobs/": lambda: (200, json.dumps([job])),
        "/api/jobs/lexray-widths-1": lambda: (200, json.dumps(job)),
        "/api/jobs/lexray-widths-1/logs": lambda: (200, json.dumps({"logs": "pip failed\n"})),
        "/api/jobs/lexray-widths-1/stop": stopped,
    }
    yield server
    server.close()


def test_force_ends_the_job_at_once_and_word_is_left_for_what_outlives_it(folder, lexray, job_server):
    driven(folder)
    code, out, err = lexray("stop", folder.store.url, "--address", job_server.url, "--force", "--json")
    assert (code, json.loads(out)["state"], json.loads(out)["job"]) == (0, "lost", "lexray-widths-1"), err
    assert read_ending(folder) == BY_HAND


def test_a_job_whose_driver_never_began_is_ended(folder, lexray, job_server, monkeypatch):
    monkeypatch.setattr("lexray.cluster.follow.stop.JOB_PATIENCE_S", 1.0)
    code, out, _ = lexray("stop", "lexray-widths-1", "--address", job_server.url)
    assert code == 0
    assert "nobody runs it; job lexray-widths-1 was ended" in out


def test_a_sweep_is_found_by_its_job_and_a_job_that_nobody_knows_is_refused(folder, lexray, job_server):
    code, out, _ = lexray("status", "lexray-widths-1", "--address", job_server.url)
    assert code == 0
    assert folder.store.url in out
    assert "lexray-widths-1: RUNNING" in out
    code, _, err = lexray("status", "lexray-widths-2", "--address", job_server.url)
    assert code == 2
    assert "no such job on this cluster; its jobs: lexray-widths-1" in err
    code, out, _ = lexray("list", "--address", job_server.url, "--json")
    assert [job["id"] for job in json.loads(out)] == ["lexray-widths-1"]


def test_a_job_that_left_nothing_in_its_folder_is_told_by_the_job_server(folder, lexray, job_server):
    folder.store.delete("sweep.yaml")
    code, out, _ = lexray("status", "lexray-widths-1", "--address", job_server.url)
    assert code == 0
    assert "job lexray-widths-1: RUNNING" in out
    assert lexray("logs", "lexray-widths-1", "--address", job_server.url) == (0, "pip failed\n", "")


def test_a_driver_that_is_told_to_go_says_so_in_the_folder(folder):
    script = (
        "import sys, time\n"
        "from lexray.cluster.commands.sweep import _terminable\n"
        "from lexray.storage.store import Store\n"
        "from lexray.tuning.driver import Driver\n"
        "driver = Driver(store=Store.at(sys.argv[1]))\n"
        "with _terminable(driver), driver:\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, folder.store.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    found = read_driver(folder.store)
    assert found is not None
    assert found.state == "interrupted"
    assert folder.store.read("log.txt").endswith(b" interrupted\n")
