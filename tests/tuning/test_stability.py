"""What dictionaries have in common: against small cases done by hand, and read once however often it is written."""

from __future__ import annotations

import itertools
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from lexray.storage.store import Store
from lexray.training.checkpoint.initial import INITIAL_FILE
from lexray.training.checkpoint.saved import load_dictionary, save_dictionary
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.measures import matching
from lexray.training.measures.matching import (
    drawn_atoms,
    found_share,
    moved,
    nearest,
    pair_stability,
    random_atoms,
    random_stability,
)
from lexray.tuning.results import comparisons
from lexray.tuning.results.report import build_results
from lexray.tuning.results.stability import choose_width, read_stability, write_stability
from lexray.tuning.sweep_folder import DONE, FAILED, SweepFolder, TrialRecord

DIMENSIONS = 6


def best_by_trying(a: Tensor, b: Tensor, *, signed_codes: bool = False) -> float:
    """Mean cosine of the best of all matchings."""
    cos = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
    cos = cos.abs() if signed_codes else cos
    orders = itertools.permutations(range(len(a)))
    return float(max(np.mean([cos[i, j] for i, j in enumerate(order)]) for order in orders))


# Pairs -------------------------------------------------------------------------------------------------------------


def test_a_dictionary_matches_itself_in_any_order_and_length() -> None:
    atoms = random_atoms(20, 8, 0)
    other = atoms[torch.randperm(20)] * torch.linspace(0.1, 2.9, 20)[:, None]
    assert pair_stability(atoms, other) == (pytest.approx(1, abs=1e-6), "hungarian")
    assert found_share(atoms, other) == 1


def test_a_dictionary_and_its_negative_are_the_same_only_where_codes_have_signs() -> None:
    atoms = torch.eye(3)
    assert pair_stability(atoms, -atoms).cosine == 0  # the best assignment swaps them
    assert pair_stability(torch.ones(1, 3), -torch.ones(1, 3)).cosine == pytest.approx(-1)
    assert pair_stability(atoms, -atoms, signed_codes=True).cosine == 1
    assert (found_share(atoms, -atoms), found_share(atoms, -atoms, signed_codes=True)) == (0, 1)
    assert (moved(-atoms, atoms), moved(-atoms, atoms, signed_codes=True)) == (2, 0)
    assert 0 < random_stability(12, 6) < random_stability(12, 6, signed_codes=True)


@pytest.mark.parametrize("signed_codes", [False, True])
def test_the_matching_is_the_best_of_all(signed_codes: bool) -> None:
    """Where the greedy choice fails: a0 is nearest to b0, but a1 has only b0."""
    a = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0]])
    b = torch.tensor([[1.0, 0.1, 0.0], [0.9, -0.5, 0.0]])
    pairs = [(a, b), *((random_atoms(6, 4, 2 * seed), random_atoms(6, 4, 2 * seed + 1)) for seed in range(5))]
    for one, other in pairs:
        found = pair_stability(one, other, signed_codes=signed_codes).cosine
        assert found == pytest.approx(best_by_trying(one, other, signed_codes=signed_codes), rel=1e-5)


def test_of_unequal_dictionaries_what_is_left_over_counts_zero() -> None:
    """Two atoms of four are found: 2 * (1 + 0.6) / (4 + 2)."""
    small = torch.tensor([[1.0, 0, 0, 0], [0, 0.6, 0.8, 0]])
    assert pair_stability(torch.eye(4)[[0, 1, 3, 3]], small).cosine == pytest.approx(2 * 1.6 / 6)
    assert pair_stability(small, small[:0]) == (0, "hungarian")


def test_wide_dictionaries_are_matched_by_their_nearest_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """(1, 0) and (0.8, 0.6) against (1, 0) and (0, 1): nearest 1, 0.8 one way and 1, 0.6 the other."""
    a, b = torch.tensor([[1.0, 0.0], [0.8, 0.6]]), torch.eye(2)
    assert pair_stability(a, b).cosine == pytest.approx((1 + 0.6) / 2)
    monkeypatch.setattr(matching, "HUNGARIAN_WIDTH", 1)
    found = pair_stability(a, b)
    assert found.method == "nearest"
    assert found.cosine == pytest.approx((1.8 + 1.6) / 4)
    assert found.cosine >= (1 + 0.6) / 2, "an upper bound"


def test_the_share_that_is_found_is_counted_at_a_cosine_of_0_7() -> None:
    small = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0, -2.0]])
    large = torch.tensor([[2.0, 0.1, 0], [0.8, 0.6, 0], [0, 0.1, 1.0], [1.0, 0.1, 0], [1.0, 0.1, 0]])
    assert nearest(small, large).tolist() == pytest.approx([0.999, 0.6, 0.995, 0], abs=1e-3)
    assert nearest(small, large, signed_codes=True).tolist() == pytest.approx([0.999, 0.6, 0.995, 0.995], abs=1e-3)
    assert (found_share(small, large), found_share(small, large, signed_codes=True)) == (0.5, 0.75)
    assert found_share(large, small) == 1.0


def test_a_sample_of_atoms_stands_for_all_where_these_are_too_many() -> None:
    atoms, other = random_atoms(400, 8, 0), random_atoms(500, 8, 1)
    some = nearest(atoms, other, max_flop=2 * 400 * 500 * 8 / 4)
    assert len(some) == 100
    whole = nearest(atoms, other)
    assert (some[:, None] - whole).abs().amin(1).max() < 1e-6
    assert float(some.mean()) == pytest.approx(float(whole.mean()), rel=0.05)


def test_random_directions_are_the_floor() -> None:
    assert 0.3 < random_stability(30, 16) < 0.6
    assert random_stability(30, 16) == random_stability(30, 16)


def test_how_far_atoms_moved_is_their_angle_to_where_they_began() -> None:
    began = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert moved(3 * began, began) == pytest.approx(0)
    assert moved(torch.tensor([[1.0, 0.0], [0.8, 0.6]]), began) == pytest.approx(0.2)


# Sweeps ------------------------------------------------------------------------------------------------------------


class Sweep:
    """A folder of finished trials with dictionaries of known atoms."""

    def __init__(self, path: Path) -> None:
        self.folder = SweepFolder(Store.at(str(path)))
        self.records: list[TrialRecord] = []

    def add(self, atoms: Tensor | None, *, seed: int, status: str = DONE, width: int = 8, name: str = "topk") -> str:
        """A trial whose dictionary has these atoms; None writes none."""
        width = width if atoms is None else len(atoms)
        options = {"architecture": name, "width": width, "target_l0": 1 if name == "kmeans" else 2}
        trial = f"{name}-{width}-{seed}"
        record = TrialRecord(trial=trial, name=trial, status=status, config={"dictionary": options, "seed": seed})
        if atoms is not None:
            sites = Sites.of_widths({"inputs": [DIMENSIONS], "outputs": [DIMENSIONS]}, reconstructs_its_input=True)
            made = make_dictionary(dictionary_config(options), sites, seed=seed)
            save_dictionary(
                self.folder.trial_store(trial).at_path("dictionary"), made, {**made.state_dict(), "W_dec": atoms}
            )
        self.folder.write_trial(record)
        self.records.append(record)
        return trial

    def fired(self, trial: str, counts: np.ndarray[Any, Any] | None) -> None:
        """Write in how many rows each latent fired; None: a file that is none."""
        content = BytesIO()
        if counts is not None:
            np.save(content, counts)
        self.folder.trial_store(trial).write("fired.npy", content.getvalue())

    def write(self) -> dict[str, Any]:
        found = write_stability(self.folder, self.records)
        assert found is not None
        assert read_stability(self.folder.store) == found
        return found


def noisy(atoms: Tensor, amount: float, seed: int) -> Tensor:
    noise = torch.randn(atoms.shape, generator=torch.Generator().manual_seed(seed))
    return atoms[torch.randperm(len(atoms))] + amount * noise


def test_seeds_are_compared_in_pairs_beside_their_start_and_the_floor(tmp_path: Path) -> None:
    sweep, atoms = Sweep(tmp_path), [random_atoms(8, DIMENSIONS, seed) for seed in (10, 11, 12)]
    trials = [sweep.add(part, seed=seed) for seed, part in enumerate(atoms)]
    (found,) = sweep.write()["seeds"]
    pairs = [pair_stability(a, b).cosine for a, b in itertools.combinations(atoms, 2)]
    assert found["trials"] == trials
    assert (found["architecture"], found["width"], found["method"]) == ("topk", 8, "hungarian")
    assert found["stability"] == pytest.approx(sum(pairs) / 3, rel=1e-5)
    assert found["lowest"] == pytest.approx(min(pairs), rel=1e-5)
    made = [load_dictionary(str(tmp_path / "trials" / trial / "dictionary")) for trial in trials]
    starts = [drawn_atoms(one, seed) for seed, one in enumerate(made)]
    ways = [moved(end, start) for end, start in zip(atoms, starts, strict=True)]
    assert found["moved"] == pytest.approx(np.mean(ways), rel=1e-5)
    between = [pair_stability(a, b).cosine for a, b in itertools.combinations(starts, 2)]
    assert found["at_start"] == pytest.approx(np.mean(between), rel=1e-5)
    assert found["floor"] == random_stability(8, DIMENSIONS)
    assert (found["dead"], found["signed_codes"]) == ([None] * 3, False)
    assert found["score"] == pytest.approx((found["stability"] - found["floor"]) / (1 - found["floor"]))


def test_the_start_that_is_compared_is_the_one_that_training_begins_with() -> None:
    sites = Sites.of_widths({"inputs": [DIMENSIONS], "outputs": [DIMENSIONS]}, reconstructs_its_input=True)
    made = make_dictionary(dictionary_config({"architecture": "topk", "width": 8, "target_l0": 2}), sites, seed=5)
    began = made.atoms_FD().detach().clone()
    assert torch.equal(drawn_atoms(made, 5), began)
    assert not torch.equal(drawn_atoms(made, 6), began)


def test_dead_latents_are_left_out_and_counted(tmp_path: Path) -> None:
    """Of 6 latents, seed 0 has a dead one and seed 1 two: 4 pairs of 5 and 4 atoms, all found again."""
    sweep, atoms = Sweep(tmp_path), torch.eye(DIMENSIONS)
    trials = [sweep.add(atoms, seed=0), sweep.add(atoms[[0, 1, 2, 3, 5, 5]], seed=1)]
    for trial, fired in zip(trials, ([1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 0, 0]), strict=True):
        sweep.fired(trial, np.array(fired))
    (found,) = sweep.write()["seeds"]
    assert found["dead"] == [1, 2]
    assert found["stability"] == pytest.approx(2 * 4 / (5 + 4))
    assert found["floor"] == random_stability(4, DIMENSIONS)  # 4.5 atoms, rounded to even


def test_a_trial_that_is_measured_later_is_compared_anew(tmp_path: Path) -> None:
    sweep, atoms = Sweep(tmp_path), torch.eye(DIMENSIONS)
    trials = [sweep.add(atoms, seed=0), sweep.add(atoms[[0, 1, 2, 3, 5, 5]], seed=1)]
    assert sweep.write()["seeds"][0]["dead"] == [None, None]
    sweep.fired(trials[1], np.array([1, 2, 3, 4, 0, 0]))
    (found,) = sweep.write()["seeds"]
    assert found["dead"] == [None, 2]
    assert found["stability"] == pytest.approx(2 * 4 / (6 + 4))


def test_damaged_counts_of_latents_leave_a_trial_out(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    trials = [sweep.add(torch.eye(DIMENSIONS), seed=seed) for seed in range(5)]
    for trial, counts in zip(trials[2:], (np.ones(5, np.int64), np.ones(6), None), strict=True):
        sweep.fired(trial, counts)
    found = sweep.write()
    assert sorted(found["failed"]) == trials[2:]
    assert "holds int64 (5,), the dictionary needs int64 (6,)" in found["failed"][trials[2]]
    assert "holds float64 (6,)" in found["failed"][trials[3]]
    assert "fired.npy: is damaged" in found["failed"][trials[4]]


def test_signs_play_no_part_where_codes_have_them(tmp_path: Path) -> None:
    sweep, atoms = Sweep(tmp_path), torch.eye(DIMENSIONS)
    for name in ("topk", "abs_topk"):
        for seed, part in enumerate((atoms, -atoms)):
            sweep.add(part, seed=seed, name=name)
    found = {group["architecture"]: group for group in sweep.write()["seeds"]}
    assert (found["topk"]["signed_codes"], found["topk"]["stability"]) == (False, 0)
    assert (found["abs_topk"]["signed_codes"], found["abs_topk"]["stability"]) == (True, 1)


def test_atoms_that_began_from_data_are_compared_with_what_the_trial_kept(tmp_path: Path) -> None:
    sweep, began = Sweep(tmp_path), torch.eye(DIMENSIONS)
    ends = [began[:5], began[[5, 1, 2, 3, 4]]]
    trials = [sweep.add(end, seed=seed, name="kmeans") for seed, end in enumerate(ends)]
    (unknown,) = sweep.write()["seeds"]
    assert (unknown["at_start"], unknown["moved"]) == (None, None)
    (tmp_path / "stability.json").unlink()
    for trial in trials:
        sweep.folder.trial_store(trial).write(INITIAL_FILE, save({"atoms": began[:5].contiguous()}))
    (found,) = sweep.write()["seeds"]
    assert found["at_start"] == 1
    assert found["stability"] == pytest.approx(0.8)
    assert found["moved"] == pytest.approx((0 + 1 / 5) / 2)
    (tmp_path / "stability.json").unlink()
    sweep.folder.trial_store(trials[0]).write(INITIAL_FILE, save({"atoms": began[:3].contiguous()}))
    failed = sweep.write()["failed"]
    assert "initial/atoms.safetensors: is damaged (atoms has the shape 3 x 6" in failed[trials[0]]


def test_stability_chooses_the_widest_of_equally_stable_widths(tmp_path: Path) -> None:
    """Widths 6 and 8 come back the same from every seed, 12 is different each time."""
    sweep = Sweep(tmp_path)
    for width, amount in ((6, 0.0), (8, 0.002), (12, 5.0)):
        for seed in (0, 1):
            sweep.add(noisy(random_atoms(width, DIMENSIONS, 3), amount, seed), seed=seed)
    found = sweep.write()
    (chosen,) = found["chosen"]
    assert (chosen["width"], list(chosen["scores"])) == (8, ["6", "8", "12"])
    assert chosen["score"] > 0.99 > chosen["scores"]["12"]
    assert [(pair["width"], pair["larger_width"]) for pair in found["widths"]] == [(6, 8), (8, 12)] * 2


def test_the_choice_of_a_width_allows_a_small_loss_of_stability() -> None:
    assert choose_width({64: 0.9, 128: 0.86, 256: 0.84}) == 128
    assert choose_width({64: 0.5}) == 64


def test_how_much_of_a_dictionary_is_in_the_next_wider_one(tmp_path: Path) -> None:
    sweep, atoms = Sweep(tmp_path), torch.eye(DIMENSIONS)
    sweep.add(atoms[:4], seed=0)
    sweep.add(torch.cat([atoms[:3], -atoms[:3], atoms[:2]]), seed=0)
    (found,) = sweep.write()["widths"]
    assert (found["smaller"], found["larger"], found["found"]) == ("topk-4-0", "topk-8-0", 0.75)
    assert 0 <= found["floor"] < 1


def test_only_trials_that_differ_in_nothing_else_are_compared(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.add(torch.eye(DIMENSIONS), seed=0)
    sweep.add(torch.eye(DIMENSIONS), seed=1, name="batch_topk")
    sweep.add(torch.eye(DIMENSIONS), seed=2, status=FAILED)
    assert write_stability(sweep.folder, sweep.records) is None
    assert read_stability(sweep.folder.store) is None


def test_a_dictionary_that_cannot_be_read_is_named_and_the_others_are_compared(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    for seed in (0, 1):
        sweep.add(random_atoms(8, DIMENSIONS, seed), seed=seed)
    gone = sweep.add(None, seed=2)
    found = sweep.write()
    assert list(found["failed"]) == [gone]
    assert "no config.json there" in found["failed"][gone]
    assert found["seeds"][0]["stability"] == pytest.approx(
        pair_stability(random_atoms(8, DIMENSIONS, 0), random_atoms(8, DIMENSIONS, 1)).cosine, rel=1e-5
    )


def test_written_again_only_new_dictionaries_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, read = Sweep(tmp_path), []
    for seed in (0, 1):
        sweep.add(random_atoms(8, DIMENSIONS, seed), seed=seed)
    first = sweep.write()
    load = comparisons.load_dictionary

    def counting(url: str, settings: Any = None) -> Any:
        read.append(url.split("/")[-2])
        return load(url, settings)

    monkeypatch.setattr(comparisons, "load_dictionary", counting)
    assert sweep.write() == first
    assert read == []
    sweep.add(random_atoms(12, DIMENSIONS, 0), seed=0)
    second = sweep.write()
    assert sorted(read) == ["topk-12-0", "topk-8-0"]
    assert second["seeds"] == first["seeds"]
    assert second["widths"]
    build_results(sweep.folder, [record.trial for record in sweep.records])
    assert read_stability(sweep.folder.store) == second, "as the results of a sweep write it"


def test_too_large_a_dictionary_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(tmp_path)
    for seed in (0, 1):
        sweep.add(random_atoms(8, DIMENSIONS, seed), seed=seed)
    monkeypatch.setattr(comparisons, "LOADED_BYTES", 100)
    found = sweep.write()
    assert len(found["failed"]) == 2
    assert "above 100 are left out" in found["failed"]["topk-8-0"]
