"""The unit in which activations are stored changes no result, and rows without variance have none.

Powers of two scale floats exactly, so trainings on X and on c X with a normaliser that divides by the scale go through
the same numbers: any absolute floor shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from training_cases import DEFAULTS, Case, config_of, default_case, find_case, named

from lexray.storage.errors import UserError
from lexray.storage.manifest import Site
from lexray.training.config import DataConfig, OptimizerConfig, TrainingConfig
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.factorised import Factorised
from lexray.training.dictionaries.learned import LearnedDictionary
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.engines.gradient_scale import check_gradient_scale
from lexray.training.engines.resampling import restarts, worst_rows
from lexray.training.loop.loop import StepRecord, global_sums
from lexray.training.measures.measure import measure
from lexray.training.measures.metrics import evaluate
from lexray.training.mesh.axes import LOCAL_DATA
from lexray.training.objectives.auxk import residual_variance
from lexray.training.ops.kmeans import assign, kmeans

SCALES = (2.0**-30, 2.0**30)
ROWS, BATCH, STEPS, WIDTHS = 240, 40, 12, (7, 5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These matrices are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def features(width: int, seed: int = 0) -> Tensor:
    """Rows of sparse features with a mean (ROWS, width)."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(16, width, generator=generator)
    code = torch.rand(ROWS, 16, generator=generator) * (torch.rand(ROWS, 16, generator=generator) < 0.15)
    return code @ atoms + torch.randn(width, generator=generator)


def statistics(rows: Tensor) -> SiteStatistics:
    rows = rows.double()
    return SiteStatistics(mean=tuple(rows.mean(0).tolist()), mean_squared_norm=float(rows.square().sum(1).mean()))


def rows_and_sites(case: Case, scale: float) -> tuple[RawRows, Sites]:
    """The same rows in another unit."""
    first, second = (scale * features(width, seed) for seed, width in enumerate(WIDTHS))
    if case.cls.kind == "sae":
        return RawRows(first, first), Sites.same(statistics(first))
    if case.cls.kind == "crosscoder":
        both = torch.cat([first, second], 1)
        return RawRows(both, both), Sites.same(statistics(first), statistics(second))
    return RawRows(first, second), Sites(inputs=(statistics(first),), outputs=(statistics(second),))


def trained(case: Case, scale: float, **options: Any) -> tuple[Dictionary, RawRows]:
    """A few steps of Adam, or of statistics, on one process."""
    rows, sites = rows_and_sites(case, scale)
    made = make_dictionary(config_of(case, dead_after_rows=2 * BATCH, **options), sites)
    starts = range(0, ROWS, BATCH)
    batches = [RawRows(rows.x_BD[start : start + BATCH], rows.y_BO[start : start + BATCH]) for start in starts]
    made.prepare(lambda: batches)
    adam = torch.optim.Adam(made.parameters(), lr=0.01) if list(made.parameters()) else None
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        made.at_step(step, STEPS)
        if adam is None:
            terms = made.learn(batch.x_BD, BATCH)
        else:
            adam.zero_grad()
            terms = made.loss(batch.x_BD, BATCH, batch.y_BO)
            terms.loss.backward()
            adam.step()
        made.after_step(global_sums(terms, BATCH, made.rows))
    return made, rows


def results(case: Case, scale: float, **options: Any) -> dict[str, float]:
    made, rows = trained(case, scale, **options)
    return evaluate(made, [rows])


@pytest.mark.parametrize("case", **named(DEFAULTS))
def test_every_architecture_reaches_the_same_fvu_and_l0_in_any_unit(case):
    expected = results(case, 1.0)
    assert expected["l0"] > 0
    assert 0 < expected["fvu"] < 2
    for scale in SCALES:
        assert results(case, scale) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("normaliser", ["unit_norm", "layer_norm", "whiten"])
@pytest.mark.parametrize("name", ["topk", "batch_topk", "relu", "kmeans"])
def test_no_normaliser_that_divides_by_a_scale_has_a_floor_of_its_own(name, normaliser):
    case = default_case(name)
    expected = results(case, 1.0, normaliser=normaliser)
    for scale in SCALES:
        assert results(case, scale, normaliser=normaliser) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["snmf", "nmf"])
def test_factorisations_need_no_normaliser_to_work_in_any_unit(name):
    """Their start is drawn by a hash of the rows, so that one is given here."""
    found = []
    for scale in (1.0, *SCALES):
        rows, sites = rows_and_sites(default_case(name), scale)
        made = make_dictionary(config_of(default_case(name), normaliser="none"), sites)
        assert isinstance(made, Factorised)
        shape = made.get_buffer("factors").shape
        start = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        made._set_factors(torch.nn.functional.normalize(start, dim=1))
        for _ in range(4):
            made.learn(rows.x_BD, ROWS)
        found.append(evaluate(made, [rows]))
    assert found[0]["fvu"] < 1
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_kmeans_goes_on_until_centroids_are_the_means_of_their_rows(scale):
    """In small units, too, where all moves are small."""
    rows = features(7) * scale
    centroids_CD = kmeans(lambda: [rows], 8, LOCAL_DATA, seed=0, rounds=60, typical_length=statistics(rows).scale)
    found = assign([rows], centroids_CD, LOCAL_DATA)
    means_CD = found.sums_CD / found.counts_C[:, None]
    torch.testing.assert_close(means_CD / scale, centroids_CD / scale, rtol=1e-4, atol=1e-5)


def test_a_decimal_scale_changes_no_more_than_rounding_does():
    """A thousand-millionth: what FVU was 0.04 instead of 0.28 at."""
    expected = results(default_case("pca"), 1.0)
    assert results(default_case("pca"), 1e-9) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["topk", "jumprelu", "crosscoder", "snmf"])
def test_measures_are_the_same_in_any_unit(name, scale):
    found = [_numbers(measure(made, lambda rows=rows: [rows]).document) for made, rows in _pair(name, scale)]
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-9)


def _pair(name: str, scale: float) -> list[tuple[Dictionary, RawRows]]:
    case = default_case(name)
    return [trained(case, 1.0), trained(case, scale)]


def _numbers(document: Any, path: str = "") -> dict[str, float]:
    """Every number of a document by its path."""
    if isinstance(document, dict):
        parts: Any = document.items()
    elif isinstance(document, list):
        parts = enumerate(document)
    else:
        return {path: document} if isinstance(document, int | float) else {}
    return {key: value for name, part in parts for key, value in _numbers(part, f"{path}/{name}").items()}


@pytest.mark.parametrize("inference", ["mp", "omp"])
def test_pursuit_picks_the_same_atoms_of_rows_in_any_unit(inference):
    """With the normaliser `none`, rows reach the pursuit as they are."""
    codes = []
    for scale in (1.0, *SCALES):
        case = default_case("mp")
        rows, sites = rows_and_sites(case, scale)
        made = make_dictionary(config_of(case, normaliser="none"), sites)
        codes.append(made.encode(rows.x_BD, inference=inference).dense() / scale)
    for code in codes[1:]:
        torch.testing.assert_close(code, codes[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("start", ["mean", "geometric_median"])
def test_biases_start_at_the_same_place_in_any_unit(start, scale):
    case = default_case("topk")
    found = []
    for factor in (1.0, scale):
        rows, sites = rows_and_sites(case, factor)
        made = make_dictionary(config_of(case, normaliser="none", bias_init=start), sites)
        assert isinstance(made, LearnedDictionary)
        made.prepare(lambda rows=rows: [rows])
        found.append(made.b_dec.detach() / factor)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_dead_latents_restart_from_the_same_rows_in_any_unit(scale):
    """Rows are hashed by their values; in units of powers of two the hash differs, so all rows are drawn."""
    case, found = default_case("topk"), []
    for factor in (1.0, scale):
        rows, sites = rows_and_sites(case, factor)
        made = make_dictionary(config_of(case, normaliser="none"), sites)
        assert isinstance(made, LearnedDictionary)
        with torch.no_grad():
            starts = worst_rows(made, rows, ROWS, made.rows)
            changes = restarts(made, torch.arange(3), starts[starts[:, 0].argsort()][:3])
        found.append({name: changes[name](torch.zeros_like(made.get_parameter(name))) for name in ("W_enc", "W_dec")})
    for name in found[0]:
        torch.testing.assert_close(found[1][name][:3], found[0][name][:3], rtol=1e-4, atol=1e-5)
        assert found[0][name][:3].norm(dim=1).min() > 0.1


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1.0, 1e9])
def test_the_variance_of_residuals_has_no_floor_but_their_own_rounding(scale):
    rows = default_case("topk")
    made = make_dictionary(config_of(rows), rows_and_sites(rows, 1.0)[1])
    e_BO = features(7) * scale
    expected = float((e_BO.double() - e_BO.double().mean(0)).square().sum())
    assert float(residual_variance(e_BO, len(e_BO), made.rows)) == pytest.approx(expected, rel=1e-4)
    assert float(residual_variance(torch.zeros(4, 3), 4, made.rows)) == 0


def test_auxk_of_a_residual_that_is_zero_is_zero_with_a_finite_gradient():
    made = make_dictionary(config_of(find_case("topk"), dead_after_rows=1), rows_and_sites(find_case("topk"), 1.0)[1])
    made.rows_since_fired_F.fill_(1)
    x_BD = made.input.mean_D.expand(4, -1)  # normalised it is zero, as is its reconstruction
    terms = made.loss(x_BD, 4)
    terms.loss.backward()
    assert float(terms.loss.detach()) == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


# Values without meaning -------------------------------------------------------------------------------------------

CONSTANT = torch.full((60, 7), 0.1)


def made_for(rows: Tensor) -> Dictionary:
    return make_dictionary(dictionary_config({"architecture": "topk", "width": 12, "target_l0": 2}),
                           Sites.same(statistics(rows)))  # fmt: skip


@pytest.mark.parametrize("rows", [CONSTANT, CONSTANT * 1e-9, torch.zeros(60, 7)], ids=["0.1", "1e-10", "zero"])
def test_rows_without_variance_have_no_fvu_and_none_of_zero(rows):
    metrics = evaluate(made_for(features(7)), [RawRows(rows, rows)])
    assert math.isnan(metrics["fvu"])
    assert metrics["l0"] >= 0
    itself = evaluate(made_for(rows), [RawRows(rows, rows)])
    assert math.isnan(itself["fvu"])
    assert math.isnan(itself["explained_variance"])


def test_metrics_of_no_rows_are_not_zero():
    metrics = evaluate(made_for(features(7)), [])
    assert metrics.pop("rows") == 0
    assert metrics.pop("dead_in_training") == 0
    assert all(math.isnan(value) for value in metrics.values())


def test_a_row_at_the_mean_is_left_out_of_the_explained_variance():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    made = make_dictionary(
        dictionary_config({"architecture": "topk", "width": 12, "target_l0": 2}), Sites.same(statistics(rows))
    )
    with_mean = torch.cat([rows, torch.zeros(4, 2)])
    found = [evaluate(made, [RawRows(x, x)])["explained_variance"] for x in (rows, with_mean)]
    assert found[1] == pytest.approx(found[0])


def test_a_step_of_equal_rows_logs_no_fvu():
    made = made_for(features(7))
    terms = made.loss(made.input.mean_D.expand(4, -1), 4)
    assert math.isnan(StepRecord(1, global_sums(terms, 4, made.rows), 0.1, 1.0).metrics()["train/fvu"])


def test_measures_of_equal_rows_are_null_where_they_mean_nothing():
    made = made_for(features(7))
    document = measure(made, lambda: [RawRows(CONSTANT, CONSTANT)]).document
    assert document["fvu"] is None
    assert all(point["fvu"] is None and point["r2"] is None for point in document["curve"]["points"])
    assert set(document["description_length"]["bits_at_fvu"].values()) == {None}
    assert document["firing"]["l0"] >= 0
    zero = measure(made, lambda: [RawRows(0 * CONSTANT, 0 * CONSTANT)]).document
    assert zero["likeness"]["relative_norm"] is None
    assert zero["likeness"]["relative_norm_centred"] is not None


# Refusals ---------------------------------------------------------------------------------------------------------


class _Manifest:
    """Statistics of sites alone."""

    def __init__(self, **rows: Tensor) -> None:
        self.sites = {name: _site(x) for name, x in rows.items()}

    def site(self, name: str) -> Site:
        return self.sites[name]


def _site(rows: Tensor) -> Site:
    found = statistics(rows)
    return Site(width=rows.shape[1], dtype="float32", mean=list(found.mean),
                mean_squared_norm=found.mean_squared_norm, norm_quantiles={"0.5": 1.0})  # fmt: skip


def data(**sites: tuple[str, ...]) -> DataConfig:
    return DataConfig(url="/data/cats", dataset_id="x", **{"inputs": ("good",), **sites})


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("constant", [0.1, 3.0, 0.0])
@pytest.mark.parametrize("place", ["inputs", "outputs"])
def test_a_site_without_variance_is_refused_by_dataset_and_name(place, constant, scale):
    manifest = _Manifest(good=features(7) * scale, flat=torch.full((3000, 16), constant * scale))
    assert data().sites_in(manifest).inputs[0].has_variance  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"dataset /data/cats: site 'flat' has no variance") as error:
        data(**{place: ("flat",)}).sites_in(manifest)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_little_variance_beside_a_large_mean_is_variance():
    rows = 1000 + 0.1 * features(7)
    assert statistics(rows).has_variance
    assert statistics(rows).scale == pytest.approx(float((rows - rows.mean(0)).square().sum(1).mean().sqrt()), rel=1e-3)


@pytest.mark.parametrize(("normaliser", "scale", "refused"), [
    ("none", 1e-9, True), ("centre", 1e-9, True), ("none", 1.0, False), ("none", 1e9, False), ("standard", 1e-9, False),
])  # fmt: skip
def test_rows_too_small_for_adam_are_refused_where_they_keep_their_scale(normaliser, scale, refused):
    sites = Sites.same(statistics(features(7) * scale))
    options = {"architecture": "topk", "width": 12, "target_l0": 2, "normaliser": normaliser}
    config = TrainingConfig(
        dictionary=dictionary_config(options), data=data(), rows=100, optimizer=OptimizerConfig(eps=1e-8)
    )
    if not refused:
        check_gradient_scale(config, sites)
        return
    with pytest.raises(UserError, match=rf"normaliser: {normaliser} leaves site 'good' .* use normaliser: standard"):
        check_gradient_scale(config, sites)
