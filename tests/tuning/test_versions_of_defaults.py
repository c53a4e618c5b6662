"""A sweep goes on with the defaults that it began with, however lexray's have changed since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.training.identity.versions import BEFORE_VERSIONS, NEWEST
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.sweep_plan import SweepPlan, plan_sweep


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    """Folder of a sweep that has not begun."""
    return Store.at(str(tmp_path / "runs"))


@pytest.fixture
def file(tmp_path: Path, folder: Store) -> Path:
    return Path(write_sweep(tmp_path / "own.yaml", sweep_content(write_dataset(tmp_path / "rows"), folder.url)))


def planned(file: Path) -> SweepPlan:
    return plan_sweep(read_config_file(str(file), SweepFile), file.read_text())


def ids(plan: SweepPlan) -> list[str]:
    return [trial.id for trial in plan.trials]


def dead_after_rows(plan: SweepPlan) -> set[int | None]:
    return {trial.config.dictionary.dead_after_rows for trial in plan.trials}


def test_a_new_sweep_has_the_newest_defaults_and_says_so(file):
    plan = planned(file)
    assert dead_after_rows(plan) == {None}
    assert yaml.safe_load(plan.text) == {**yaml.safe_load(file.read_text()), "defaults": NEWEST}
    assert plan.text.startswith(file.read_text().rstrip()), "comments stay"


def test_a_sweep_of_before_goes_on_with_the_defaults_of_before(file, folder):
    new = ids(planned(file))
    folder.write("sweep.yaml", file.read_bytes())
    plan = planned(file)
    assert dead_after_rows(plan) == {10_000_000}
    assert yaml.safe_load(plan.text)["defaults"] == BEFORE_VERSIONS
    assert not set(new) & set(ids(plan))


def test_a_sweep_that_began_goes_on_with_its_version_from_its_folder_and_from_the_file(file, folder, tmp_path):
    first = planned(file)
    folder.write("sweep.yaml", first.text.encode())
    (tmp_path / "as_run.yaml").write_text(first.text)
    assert ids(planned(file)) == ids(planned(tmp_path / "as_run.yaml")) == ids(first)


def test_a_file_may_name_the_version(file):
    file.write_text(f"{file.read_text()}\ndefaults: {BEFORE_VERSIONS}\n")
    plan = planned(file)
    assert (dead_after_rows(plan), plan.text) == ({10_000_000}, file.read_text())
    file.write_text(file.read_text().replace(f"defaults: {BEFORE_VERSIONS}", f"defaults: {NEWEST + 1}"))
    with pytest.raises(UserError, match=rf"own.yaml: defaults: {NEWEST + 1} must be at most {NEWEST}"):
        planned(file)


@pytest.mark.parametrize("form", ["json", "document", "flow"])
def test_the_version_is_added_to_every_form_of_a_file(file, form):
    content = yaml.safe_load(file.read_text())
    text = {
        "json": json.dumps(content),
        "document": f"---\n{file.read_text()}...\n",
        "flow": yaml.safe_dump(content, default_flow_style=True),
    }[form]
    file.write_text(text)
    assert yaml.safe_load(planned(file).text) == {**content, "defaults": NEWEST}


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"x: " + b"1" * 300_000])
def test_a_broken_file_in_the_folder_is_named(file, folder, content):
    folder.write("sweep.yaml", content)
    with pytest.raises(Exception, match=r"runs/sweep\.yaml") as error:
        planned(file)
    assert "\n" not in str(error.value)
