"""Every architecture says whether its atoms at step 0 follow from the seed; those that do not are kept by the trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_cases import find_case, random_rows, untrained
from training_synthetic import Dataset, latent_axes, on_ranks, small_config, small_dataset

from lexray.storage.store import Store
from lexray.training.checkpoint.initial import INITIAL_FILE, read_initial_atoms, write_initial_atoms
from lexray.training.checkpoint.saved import load_dictionary
from lexray.training.dictionaries import ARCHITECTURES
from lexray.training.dictionaries.base import Dictionary
from lexray.training.loop.trainer import Trainer
from lexray.training.measures.matching import drawn_atoms
from lexray.training.mesh.axes import Axes


def prepared(name: str, **about: Any) -> Dictionary:
    """An untrained dictionary as its first step begins."""
    made = untrained(find_case(name))
    made = type(made)(made.config, made.sites, seed=3, **about)
    batches = [random_rows(made.sites, number, 64, torch.float32) for number in (1, 2)]
    made.prepare(lambda: batches)
    return made


def atoms_of(made: Dictionary) -> Tensor:
    atoms_FO: Tensor = made.atoms_FD()  # type: ignore[operator]
    return atoms_FO.detach()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_seed_alone_gives_the_atoms_unless_the_dictionary_says_otherwise(name: str) -> None:
    made = prepared(name)
    fresh = type(made)(made.config, made.sites, seed=3)
    assert torch.equal(atoms_of(made), atoms_of(fresh)) != made.atoms_from_data
    if not made.atoms_from_data:
        assert torch.equal(drawn_atoms(made, 3), atoms_of(made))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_codes_have_signs_where_the_dictionary_says_so_and_only_there(name: str) -> None:
    made = prepared(name)
    code = made.encode(random_rows(made.sites, 3, 64, torch.float32).x_BD)
    assert bool((code.values < 0).any()) == made.signed_codes


def test_two_slices_write_the_atoms_of_one_process(tmp_path: Path) -> None:
    def write(rank: int, axes: Axes) -> None:
        write_initial_atoms(Store.at(str(tmp_path / "two")), prepared("archetypal", axes=axes), is_first=rank == 0)

    on_ranks(write, latent_axes)
    whole = atoms_of(prepared("archetypal"))
    found = read_initial_atoms(Store.at(str(tmp_path / "two")), tuple(whole.shape))
    assert found is not None
    torch.testing.assert_close(found, whole)


def test_atoms_of_a_size_that_nothing_compares_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexray.training.checkpoint.initial.ATOMS_BYTES", 100)
    write_initial_atoms(Store.at(str(tmp_path)), prepared("kmeans"), is_first=True)
    assert read_initial_atoms(Store.at(str(tmp_path)), (30, 7)) is None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("name", ["archetypal", "kmeans", "topk"])
def test_a_training_keeps_them_when_it_starts_and_not_when_it_resumes(
    dataset: Dataset, tmp_path: Path, name: str
) -> None:
    store, config = Store.at(str(tmp_path)), small_config(dataset, name)
    pauses = iter(["", "", "", "for the test"])
    Trainer(config=config, store=store, should_pause=lambda: next(pauses)).run()
    file = tmp_path / INITIAL_FILE
    assert file.exists() == (name != "topk")
    began = file.read_bytes() if file.exists() else b""
    file.unlink(missing_ok=True)
    Trainer(config=config, store=store).run()
    assert not file.exists(), "a resumed training no longer has them"
    if began:
        file.write_bytes(began)
        ended = atoms_of(load_dictionary(str(tmp_path / "dictionary")))
        found = read_initial_atoms(store, tuple(ended.shape))
        assert found is not None
        assert 0 < (found - ended).norm() < ended.norm()
