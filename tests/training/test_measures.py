"""Measures of a dictionary: cases worked out by hand, their ends, and no dependence on how rows are cut."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sweeps import write_dataset
from torch import Tensor
from training_cases import DEFAULTS, Case, named, random_dictionary, random_rows

from lexray.storage.errors import UserError
from lexray.storage.manifest import load_manifest
from lexray.storage.store import Store
from lexray.storage.stream import local_stream
from lexray.training.checkpoint.saved import load_dictionary, save_dictionary
from lexray.training.config import DataConfig
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.loop.setup import read_locally
from lexray.training.measures.coherence import coherence
from lexray.training.measures.firing import FiringCounts
from lexray.training.measures.held_out import measure_held_out, measure_trial, read_measures, write_measures
from lexray.training.measures.measure import Measures, measure
from lexray.training.measures.metrics import evaluate
from lexray.training.measures.rate import (
    RatePoint,
    bits_at,
    entropy_bits,
    index_bits,
    rounded,
    truncated,
)
from lexray.training.ops.sparse_code import SparseCode

ROWS = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(5.0)


def both_ways(rows: Tensor, *, k: int) -> Dictionary:
    """Atoms along the axes in both directions: with as many active as there are axes nothing is lost."""
    x, width = rows.double(), rows.shape[1]
    site = SiteStatistics(mean=tuple(x.mean(0).tolist()), mean_squared_norm=float(x.square().sum(1).mean()))
    config = dictionary_config({"architecture": "topk", "width": 2 * width, "target_l0": k})
    made = make_dictionary(config, Sites.same(site))
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    made.load_state_dict({**made.state_dict(), "W_enc": both, "W_dec": both})
    return made


def mean_only(rows: Tensor) -> Dictionary:
    """No latent is ever active."""
    made = both_ways(rows, k=2)
    made.load_state_dict({**made.state_dict(), "W_enc": torch.zeros_like(made.W_enc)})
    return made


def in_parts(rows: RawRows, ends: Iterable[int]) -> Any:
    """The rows cut at these places, again at each call."""
    places = [0, *ends, len(rows.x_BD)]
    return lambda: [RawRows(rows.x_BD[a:b], rows.y_BO[a:b]) for a, b in itertools.pairwise(places)]


def document_of(made: Dictionary, rows: Tensor = ROWS, *ends: int) -> dict[str, Any]:
    return measure(made, in_parts(RawRows(rows, rows), ends)).document


def code_of(dense: list[list[float]]) -> SparseCode:
    values_BF = torch.tensor(dense)
    return SparseCode.where(values_BF != 0, values_BF)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested values by the path to them."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inside is None:
        return {name: value}
    return {path: leaf for key, part in inside for path, leaf in flat(part, f"{name}/{key}").items()}


# Ends --------------------------------------------------------------------------------------------------------------


def test_a_perfect_reconstruction_is_like_its_target_in_every_way() -> None:
    found = document_of(both_ways(ROWS, k=5))
    assert found["fvu"] == pytest.approx(0, abs=1e-10)
    assert found["likeness"] == pytest.approx(dict.fromkeys(found["likeness"], 1), abs=1e-6)
    assert found["firing"]["l0"] == 5


def test_predicting_the_mean_has_fvu_one_costs_no_bits_and_is_like_no_centred_row() -> None:
    found = document_of(mean_only(ROWS))
    assert found["fvu"] == pytest.approx(1, abs=1e-6)
    assert all(point["fvu"] == pytest.approx(1, abs=1e-6) for point in found["curve"]["points"])
    assert all(point["bits"] == 0 for point in found["description_length"]["points"])
    assert set(found["description_length"]["bits_at_fvu"].values()) == {None}
    assert (found["likeness"]["cosine_centred"], found["likeness"]["relative_norm_centred"]) == (0, 0)
    assert found["likeness"]["cosine"] > 0.9, "the common mean alone makes raw rows alike"
    assert found["firing"]["dead_fraction"] == 1


@pytest.mark.parametrize("case", **named(DEFAULTS))
def test_every_architecture_is_measured_the_same_however_its_rows_are_cut(case: Case) -> None:
    made = random_dictionary(case)
    rows = random_rows(made.sites, 1, 60)
    whole, cut = (measure(made, in_parts(rows, ends)) for ends in ((), (1, 7, 40)))
    one, other = flat(whole.document), flat(cut.document)
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = value if isinstance(value, str) or value is None else pytest.approx(value, rel=1e-6, abs=1e-9)
        assert other[name] == same, name
    assert torch.equal(whole.fired_F, cut.fired_F)
    expected = evaluate(made, [rows])
    assert one["/fvu"] == pytest.approx(expected["fvu"], rel=1e-6)
    assert one["/firing/l0"] == pytest.approx(expected["l0"])
    assert one["/curve/points/0/fvu"] == pytest.approx(expected["fvu"], rel=1e-6), "k None is as at inference"
    json.dumps(whole.document, allow_nan=False)


def test_without_rows_nothing_is_measured() -> None:
    with pytest.raises(UserError, match="there are no held-out rows"):
        measure(both_ways(ROWS, k=2), lambda: [])


# Cosine and length -------------------------------------------------------------------------------------------------


def test_cosine_and_lengths_are_those_worked_out_by_hand() -> None:
    """Mean (0, 0), k = 1: rows (3, 4) and (-2, 0) become (0, 4) and (-2, 0).

    Cosines 16 / (5 * 4) and 1; lengths 4 / 5 and 1; squares 16 + 4 over inner products 16 + 4.
    """
    rows = torch.tensor([[3.0, 4.0], [-2.0, 0.0]])
    made = both_ways(rows, k=1)
    made.input.mean_D.zero_(), made.input.shift_D.zero_()
    found = document_of(made, rows)["likeness"]
    assert found["cosine"] == found["cosine_centred"] == pytest.approx(0.9)
    assert found["relative_norm"] == found["relative_norm_centred"] == pytest.approx(0.9)
    assert found["relative_reconstruction_bias"] == pytest.approx(1)


def test_the_bias_tells_a_reconstruction_that_is_too_short() -> None:
    """Half of every row: ||y'||^2 / <y, y'> is 1/4 over 1/2, whatever the cosine says."""
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    made = both_ways(rows, k=3)
    made.input.mean_D.zero_(), made.input.shift_D.zero_()
    made.load_state_dict({**made.state_dict(), "W_enc": made.W_enc / 2})
    found = document_of(made, rows)["likeness"]
    assert found["relative_reconstruction_bias"] == pytest.approx(0.5, rel=1e-5)
    assert (found["cosine"], found["relative_norm"]) == pytest.approx((1, 0.5), rel=1e-5)


def test_a_reconstruction_that_points_away_has_a_negative_bias_and_zeros_have_none() -> None:
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    made = both_ways(rows, k=3)
    made.input.mean_D.zero_(), made.input.shift_D.zero_()
    made.load_state_dict({**made.state_dict(), "W_enc": -made.W_enc})
    assert document_of(made, rows)["likeness"]["relative_reconstruction_bias"] == pytest.approx(-1, rel=1e-5)
    made.load_state_dict({**made.state_dict(), "W_enc": torch.zeros_like(made.W_enc)})
    assert document_of(made, rows)["likeness"]["relative_reconstruction_bias"] is None


# Firing ------------------------------------------------------------------------------------------------------------


def test_frequencies_are_counted_by_hand() -> None:
    """Of 20 rows latent 0 fires in all, 1 in two (a tenth: not dense), 2 in three, 3 in none."""
    dense = torch.zeros(20, 4)
    dense[:, 0], dense[:2, 1], dense[:3, 2] = 1.0, -1.0, 0.5
    counts = FiringCounts(4)
    for part in dense.split(7):
        counts.add(
            SparseCode.where(torch.ones_like(part, dtype=torch.bool), part)
        )  # zeros among the values do not count
    found = counts.document()
    assert counts.counts_F.tolist() == [20, 2, 3, 0]
    assert (found["l0"], found["dense_fraction"], found["dead_fraction"]) == (1.25, 0.5, 0.25)
    edges, histogram = found["log10_edges"], found["histogram"]
    assert (len(edges), edges[0], edges[-1]) == (len(histogram) + 1, -7, 0)
    filled = {edges[number]: count for number, count in enumerate(histogram) if count}
    assert filled == {-1.0: 2, -0.25: 1}, "log10 of 0.1 is -1, of 0.15 -0.82, of 1 it is 0"


# Coherence ---------------------------------------------------------------------------------------------------------


def test_coherence_of_three_atoms_is_that_worked_out_by_hand() -> None:
    """(1, 0), (0, 2) and (1, 1): |cos| 0, 0.707, 0.707. The largest of each is 0.707; (1, 1) sums to 1.414."""
    found = coherence(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), 2)
    half = math.sqrt(0.5)
    assert found["max_cosine"] == found["mean_max_cosine"] == pytest.approx(half)
    assert found["babel"] == pytest.approx(2 * half)
    assert (found["duplicate_fraction"], found["duplicate_pairs"]) == (0, 0)


def test_duplicates_are_counted_and_opposites_are_none() -> None:
    atoms = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0.01], [0, 0, 0]])
    found = coherence(atoms, 1)
    assert found["duplicate_pairs"] == 2
    assert found["duplicate_fraction"] == pytest.approx(4 / 6)
    assert found["max_cosine"] == pytest.approx(1)


def test_blocks_and_a_dense_matrix_give_the_same_coherence(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    atoms[7] = 3 * atoms[21]
    cosines = torch.nn.functional.normalize(atoms.double(), dim=1)
    cosines = (cosines @ cosines.T).fill_diagonal_(0)
    monkeypatch.setattr("lexray.training.measures.coherence.BLOCK_ENTRIES", 130)
    found = coherence(atoms, 4)
    assert found["max_cosine"] == pytest.approx(float(cosines.abs().max()), rel=1e-5)
    assert found["mean_max_cosine"] == pytest.approx(float(cosines.abs().amax(1).mean()), rel=1e-5)
    assert found["babel"] == pytest.approx(float(cosines.abs().topk(4).values.sum(1).max()), rel=1e-5)
    assert found["duplicate_pairs"] == 1
    some = coherence(atoms, 4, max_flop=2 * 40 * 6 * 10)
    assert (some["atoms_compared"], some["duplicate_pairs"]) == (10, None)
    assert some["max_cosine"] <= found["max_cosine"]
    assert some["babel"] <= found["babel"]


# Rates -------------------------------------------------------------------------------------------------------------


def test_a_truncated_code_keeps_the_largest_contributions_of_each_row() -> None:
    code = code_of([[1.0, 0, 3.0, -2.0], [0, 0, 0, 0], [5.0, 5.0, 0, 1.0]])
    norms = torch.tensor([1.0, 1.0, 0.1, 1.0])
    assert truncated(code, 1, norms).dense().tolist() == [[0, 0, 0, -2.0], [0, 0, 0, 0], [5.0, 0, 0, 0]]
    assert torch.equal(truncated(code, 2, norms).dense(), code_of([[1.0, 0, 0, -2.0], [0] * 4, [5.0, 5, 0, 0]]).dense())
    assert torch.equal(truncated(code, 9, norms).dense(), code.dense())


def test_truncating_a_topk_code_is_asking_it_for_fewer_latents() -> None:
    made = both_ways(ROWS, k=5)
    assert made.takes_k
    code, norms = made.encode(ROWS), torch.ones(10)
    for k in (1, 2, 4):
        assert torch.equal(truncated(code, k, norms).dense(), made.encode(ROWS, k=k).dense())


def test_rounding_is_to_multiples_of_the_contribution() -> None:
    """Atoms of length 2: contributions 2.2, -0.4, 5 are 2, 0 and 5 steps of 1; values are half of that."""
    found = rounded(code_of([[1.1, -0.2, 2.5]]), torch.tensor([2.0, 2.0, 2.0]), 1.0)
    assert found.levels_N.tolist() == [2, 0, 5]
    assert found.code.values.tolist() == [1.0, 0.0, 2.5]


def test_entropies_are_those_of_the_book() -> None:
    assert entropy_bits(torch.tensor([1, 1, 0, 2])) == pytest.approx(1.5)
    assert index_bits(torch.tensor([0.5, 0.25, 0.0, 1.0])) == pytest.approx(1 + 0.25 * 2 + 0.75 * math.log2(4 / 3))


def test_bits_of_a_small_dictionary_are_those_worked_out_by_hand() -> None:
    """Rows (2, 0), (-2, 0), (0, 4), (0, -4) with k = 1: each of four latents fires in a quarter of the rows.

    The root mean square contribution is sqrt(10), in the site's units; steps of 1 and 1/2 of it give the levels
    (1, 1) and (1, 3) - the values are 0.632 and 1.265 of it. Index bits 4 * H_b(1/4) = 3.245, level bits 0 and 1.
    """
    rows = torch.tensor([[2.0, 0], [-2.0, 0], [0, 4.0], [0, -4.0]])
    found = document_of(both_ways(rows, k=1), rows)["description_length"]["points"]
    index = 4 * (0.25 * 2 + 0.75 * math.log2(4 / 3))
    as_is = [point for point in found if point["k"] is None]
    _, coarse, half, _ = as_is
    assert coarse["bits"] == pytest.approx(index)
    assert half["bits"] == pytest.approx(index + 1)
    step = math.sqrt(10)
    # 2 as one step, 4 as one step; of a variance of (2 * 4 + 2 * 16) / 4 = 10.
    assert coarse["fvu"] == pytest.approx(((step - 2) ** 2 + (step - 4) ** 2) / 2 / 10, rel=1e-5)
    assert half["fvu"] == pytest.approx(((step / 2 - 2) ** 2 + (3 * step / 2 - 4) ** 2) / 2 / 10, rel=1e-4)


def test_bits_at_a_distortion_lie_on_the_line_between_two_codes() -> None:
    points = [RatePoint(0.2, 100.0), RatePoint(0.6, 20.0), RatePoint(0.5, 90.0)]
    assert bits_at(0.6, points) == 20
    assert bits_at(0.4, points) == pytest.approx(60), "half the rows with either; the third code is no help"
    assert bits_at(0.8, points) == pytest.approx(10), "half the rows predicted by their mean"
    assert bits_at(0.1, points) is None
    assert bits_at(0.5, []) is None


def test_more_bits_buy_less_distortion() -> None:
    found = document_of(both_ways(ROWS, k=5))["description_length"]["bits_at_fvu"]
    bits = [found[key] for key in ("0.5", "0.4", "0.3", "0.25", "0.2", "0.15", "0.1", "0.05", "0.02")]
    assert bits == sorted(bits)
    assert bits[0] > 0


def test_the_curve_falls_with_k_to_nothing_lost() -> None:
    curve = document_of(both_ways(ROWS, k=4))["curve"]
    points = {point["k"]: point for point in curve["points"]}
    assert curve["method"] == "encode"
    assert list(points) == [None, 1, 2, 8]
    assert points[1]["fvu"] > points[2]["fvu"] > points[None]["fvu"] > points[8]["fvu"] == pytest.approx(0, abs=1e-9)
    assert points[None]["fvu"] == pytest.approx(1 - points[None]["r2"])


# Files -------------------------------------------------------------------------------------------------------------


def test_written_measures_are_read_back_and_a_failure_is_none(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    assert read_measures(store) is None
    found = measure(both_ways(ROWS, k=2), in_parts(RawRows(ROWS, ROWS), ()))
    assert isinstance(found, Measures)
    write_measures(store, found)
    assert read_measures(store) == json.loads(json.dumps(found.document))
    assert np.load(tmp_path / "fired.npy").tolist() == found.fired_F.tolist()
    store.write("measures.json", json.dumps({"version": 1, "error": "MemoryError"}).encode())
    assert read_measures(store) is None


def saved_with_data(tmp_path: Path) -> tuple[Store, DataConfig]:
    """A trial's folder with an untrained dictionary over a small dataset."""
    url = write_dataset(tmp_path / "data")
    manifest = load_manifest(Store.at(url))
    data = DataConfig(url=url, dataset_id=manifest.id, inputs=("site",), held_out=0.2, batch_rows=256)
    config = dictionary_config({"architecture": "topk", "width": 32, "target_l0": 4})
    store = Store.at(str(tmp_path / "trial"))
    save_dictionary(store.at_path("dictionary"), make_dictionary(config, data.sites_in(manifest)))
    return store, data


def test_a_trial_is_measured_on_its_test_rows(tmp_path: Path) -> None:
    store, data = saved_with_data(tmp_path)
    measure_trial(store, read_locally, data)
    found = read_measures(store)
    assert found is not None
    stream = local_stream(data.stream_spec("test"), batch_rows=100)
    assert found["rows"] == stream.total_rows // data.lanes * data.lanes > 500
    assert found["part"] == "test"
    again = measure_held_out(load_dictionary(f"{store.url}/dictionary"), stream, data).document
    assert flat(found)["/fvu"] == pytest.approx(again["fvu"], rel=1e-9)
    assert found["firing"] == again["firing"]


def test_a_failure_to_measure_is_a_warning_that_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, data = saved_with_data(tmp_path)

    def broken(spec: Any) -> Any:
        raise OSError("the store is gone")

    measure_trial(store, broken, data)
    assert "not measured (OSError: the store is gone)" in caplog.text
    assert json.loads(store.read("measures.json"))["error"] == "OSError: the store is gone"
    assert read_measures(store) is None
