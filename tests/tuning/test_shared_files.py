"""What a sweep and a harvest write for others names neither the machine, nor the user, nor the home folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.storage.anonymous import HOST, without_home, without_names
from lexray.storage.store import Store
from lexray.tuning.driver_record import Place, claim, is_dead_here, process_of, read_driver, this_place
from lexray.tuning.sweep_folder import SweepFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "zz-home" / "zz-user"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    return folder


@given(st.text(alphabet="abc./ :'\"", max_size=8), st.text(alphabet="abc./ :'\"-", max_size=8))
def test_the_home_folder_is_written_so_that_paths_still_lead_there(before, after):
    home = str(Path.home())
    told = without_home(f"{before}{home}{after}")
    if not re.match(r"[\w.-]", after) and not re.search(r"[\w.~-]$", before):
        assert home not in told
    assert told.replace("~", home) == f"{before}{home}{after}"


def test_urls_and_nested_values_lose_the_home_folder_alone(home):
    value = {
        "url": f"file://{home}/data",
        "n": [1, None, True, f"{home}"],
        "t": (f"{home}2/x", "/other", f"/a{home}/b"),
    }
    told = without_home(value)
    assert told == {"url": "file://~/data", "n": [1, None, True, "~"], "t": (f"{home}2/x", "/other", f"/a{home}/b")}
    assert Store.at(told["url"]).url == f"file://{home}/data"


@pytest.mark.parametrize("home", ["/", "", "relative"])
def test_a_home_that_says_nothing_is_left(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    assert without_home("/data and relative/x") == "/data and relative/x"


def test_host_names_leave_texts_as_whole_words(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node-7")
    assert without_names("rank 1 on node-7: node-7.lab, node-77, my-node-7") == (
        f"rank 1 on {HOST}: {HOST}.lab, node-77, my-node-7"
    )
    monkeypatch.setattr(socket, "gethostname", lambda: "vm")
    assert without_names("a vm") == "a vm"


def test_credentials_of_urls_leave_texts():
    told = without_names("http://me:pa55@proxy:1/x, s3://key@bucket/a@b, mail me@x.org, s3://bucket/a@b")
    assert told == "http://***@proxy:1/x, s3://***@bucket/a@b, mail me@x.org, s3://bucket/a@b"


def test_a_driver_knows_its_machine_by_a_mark_that_tells_nobody_else(tmp_path):
    store, place = Store.at(str(tmp_path)), this_place()
    first = claim(store, place, "one", 0.0)
    assert is_dead_here(first, place) is False
    gone = Place(machine=place.machine, process="1:0")
    assert process_of(1) != gone.process
    second = claim(store, gone, "two", 0.0)
    assert is_dead_here(second, place) is True
    assert is_dead_here(second, Place(machine="another", process=place.process)) is False
    assert first.machine != second.machine, "two sweeps of one machine cannot be told to be so"
    written = (tmp_path / "driver.json").read_text()
    assert not [part for part in place.machine.split() if part in written]
    assert second == read_driver(store)
    assert first.where == "this machine"


NAMES = ("zz-host-99", "zz-user", "zz-home")
"""Of the host, the user and a folder above the home folder."""
IDENTITIES = ("/etc/machine-id", "/proc/sys/kernel/random/boot_id")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_file_of_a_sweep_and_a_harvest_names_machine_user_or_home(tmp_path):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can give this machine another name")
    home = tmp_path / "zz-home" / "zz-user"
    home.mkdir(parents=True)
    work = home / "work"
    work.mkdir()
    write_dataset(work / "data")
    write_sweep(work / "sweep.yaml", sweep_content("data", "out"))
    harvest = yaml.safe_load((ROOT / "examples/quickstart/harvest.yaml").read_text())
    (work / "text").mkdir()
    (work / "text" / "a.txt").write_text("Some words of a text. " * 50)
    (work / "harvest.yaml").write_text(yaml.safe_dump(harvest | {"output": "acts", "text": {"files": "text/*.txt"}}))
    lexray = f"{sys.executable} -P -m lexray"
    commands = f"hostname zz-host-99 && {lexray} sweep sweep.yaml && {lexray} harvest harvest.yaml"
    environment = {**os.environ, "HOME": str(home), "LOGNAME": "zz-user", "USER": "zz-user", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["unshare", "-u", "sh", "-c", commands], cwd=work, env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    words = [*NAMES, *(Path(file).read_text().strip() for file in IDENTITIES if Path(file).exists())]
    # W&B keeps where it staged the table of an offline sweep: `lexray wandb sync` reads it from there.
    staged = set((work / "out" / "wandb").glob("*-sweep-*/*.wandb"))
    files = [
        file for name in ("out", "acts") for file in (work / name).rglob("*") if file.is_file() and file not in staged
    ]
    assert {"driver.json", "log.txt", "report.html", "trial.json", "config.json"} <= {file.name for file in files}
    telling = {(str(file), word) for file in files for word in words if word.encode() in file.read_bytes()}
    assert telling == set()
    assert json.loads((work / "out" / "driver.json").read_text())["state"] == "ended"
    for trial in SweepFolder.existing(str(work / "out")).store.list_folders("trials"):
        assert json.loads((work / "out" / "trials" / trial / "trial.json").read_text())["result"]
