"""Which projects a sweep file may name, and which ids and folders W&B gets for any sweep."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st
from wandb.errors import UsageError

from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.tuning.file.wandb_block import WandbBlock, split_project
from lexray.tuning.views.wandb_ids import MAX_ID_CHARACTERS, RunIds, file_name, shortened


@pytest.mark.parametrize(
    ("project", "parts"),
    [
        ("sae", (None, "sae")),
        ("team/sae", ("team", "sae")),
        ("my team's saes", (None, "my team's saes")),
        ("größe", (None, "größe")),
    ],
)
def test_a_project_may_name_its_entity(project: str, parts: tuple[str | None, str]) -> None:
    assert split_project(project) == parts
    assert WandbBlock(project=project).project == project


@pytest.mark.parametrize(
    ("project", "reason"),
    [
        ("sae #2", "'#', which W&B refuses"),
        ("50% sparse", "'%', which W&B refuses"),
        ("gpt2:layer6", "':', which W&B refuses"),
        ("what?", "'?', which W&B refuses"),
        ("a\\b", "W&B refuses"),
        ("https://wandb.ai/team/sae", "W&B refuses|neither PROJECT"),
        ("team/sae/run", "'/', which W&B refuses"),
        ("x" * 200, "200 characters, W&B takes at most 128"),
        ("", "neither PROJECT nor ENTITY/PROJECT"),
        ("/sae", "neither PROJECT nor ENTITY/PROJECT"),
        ("team/", "neither PROJECT nor ENTITY/PROJECT"),
        (" sae", "neither PROJECT nor ENTITY/PROJECT"),
        ("a\x1b[2Jb", "neither PROJECT nor ENTITY/PROJECT"),
    ],
)
def test_what_wandb_would_refuse_is_refused_with_the_file(project: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        WandbBlock(project=project)


@given(st.text(min_size=1, max_size=140))
def test_whatever_is_accepted_is_accepted_by_wandb_itself(project: str) -> None:
    try:
        _, name = split_project(project)
    except ValueError:
        return
    try:
        wandb.Settings(project=name)
    except UsageError as error:
        pytest.fail(f"{name!r}: {error}")


@given(st.text(max_size=300), st.text(max_size=300))
def test_ids_and_folders_are_short_and_differ(first: str, second: str) -> None:
    ids = RunIds("0123456789")
    made = [ids.of_trial(name) for name in (first, second)]
    assert max(map(len, made)) <= MAX_ID_CHARACTERS
    assert (made[0] == made[1]) == (first == second)
    assert re.fullmatch(r"[\w-]{1,64}", file_name(first), flags=re.ASCII)
    assert shortened(first, 300) == first


def test_a_folder_keeps_its_ids_and_a_new_one_at_its_place_has_others(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "sweep"))
    first = RunIds.of_folder(store)
    assert RunIds.of_folder(store) == first
    store.delete("wandb.json")
    assert RunIds.of_folder(store) != first


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"nonce": 7}', b"\xff", b"[" * 100_000])
def test_a_strange_wandb_json_is_named(tmp_path: Path, content: bytes) -> None:
    store = Store.at(str(tmp_path / "sweep"))
    store.write("wandb.json", content)
    with pytest.raises(UserError, match=r"sweep/wandb\.json: .*; remove it to start new W&B runs"):
        RunIds.of_folder(store)
