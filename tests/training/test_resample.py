"""Resampling: dead latents restart from badly reconstructed rows, and nothing else changes."""

from __future__ import annotations

import math

import pytest
import torch
from quick_cases import FAMILIES, quick
from torch import Tensor
from training_cases import Case, cut, find_case, named, random_dictionary, random_rows
from training_synthetic import BATCH_ROWS, Dataset, moments_of, on_two_ranks, small_config, small_dataset

from lexray.storage.stream import local_stream
from lexray.training.codes.jumprelu import JumpReLU
from lexray.training.dictionaries import ARCHITECTURES
from lexray.training.dictionaries.base import RawRows
from lexray.training.dictionaries.learned import LearnedDictionary
from lexray.training.engines.batches import raw_rows
from lexray.training.engines.resampling import ENCODER_LENGTH, is_due, resample_dead, restarts, worst_rows
from lexray.training.loop.build import build_dictionary, make_engine, sample_rows
from lexray.training.loop.loop import training_steps
from lexray.training.mesh.axes import LOCAL_DATA
from lexray.training.mesh.mesh import ONE_RANK
from lexray.training.mesh.settings import MeshConfig

pytestmark = pytest.mark.usefixtures("process_group")

DEAD = [3, 7, 11]
BY_LATENT = ("W_enc", "W_dec", "b_enc", "b_gate", "b_mag", "r_mag", "scaled_log_threshold")
RESAMPLED = [
    name for name, made in ARCHITECTURES.items() if made.Config.learns_by == "gradient" and "archetypal" not in name
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def trained(dataset: Dataset, name: str, stage: int):
    """An engine after a few steps whose dictionary has three dead latents, and a batch."""
    options = {"resample_every_rows": BATCH_ROWS}
    config = small_config(dataset, name, mesh=MeshConfig(zero_stage=stage), dictionary=options)
    stream = local_stream(config.data.stream_spec("train"), batch_rows=BATCH_ROWS)
    dictionary = build_dictionary(config, stream.manifest)
    if dictionary.needs_sample:
        dictionary.prepare(lambda: sample_rows(config, stream, torch.device("cpu")))
    engine = make_engine(dictionary, config, ONE_RANK)
    steps = training_steps(config, stream, engine, LOCAL_DATA, start=0)
    for _ in range(4):
        next(steps)
    dictionary.rows_since_fired_F.zero_()
    dictionary.rows_since_fired_F[DEAD] = 10**6
    return engine, raw_rows(stream.batch(4), config.data)


CASES = [(name, 0) for name in RESAMPLED] + [
    (name, stage) for name in ("topk", "gated", "jumprelu") for stage in (1, 2, 3)
]


@pytest.mark.parametrize(("name", "stage"), quick(CASES, [(name, 0) for name in FAMILIES] + [("topk", 3)]))
def test_dead_latents_change_and_nothing_else_does_and_adam_forgets_them(dataset, name, stage):
    engine, raw = trained(dataset, name, stage)
    before, moments = engine.full_parameters(), moments_of(engine)
    count = resample_dead(engine, raw, BATCH_ROWS, LOCAL_DATA)
    after, moments_after = engine.full_parameters(), moments_of(engine)
    assert count == len(DEAD)
    assert not engine.dictionary.rows_since_fired_F.any()
    alive = [i for i in range(len(engine.dictionary.rows_since_fired_F)) if i not in DEAD]
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed
    assert set(changed) <= set(BY_LATENT)
    for key in before:
        kept = alive if key in BY_LATENT else slice(None)
        assert torch.equal(after[key][kept], before[key][kept])
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(moments_after[f"{moment}.{key}"][kept], moments[f"{moment}.{key}"][kept])
            if key in changed:
                different = after[key] != before[key]
                assert not moments_after[f"{moment}.{key}"][different].any()


def test_a_restarted_latent_points_at_what_was_missing(dataset):
    engine, raw = trained(dataset, "topk", 0)
    made = engine.dictionary
    with torch.no_grad():
        residuals = made.input.normalise(raw.x_BD) - made.input.normalise(made(raw.x_BD))
        length = made.W_enc[~made.dead_F].norm(dim=1).mean()
    resample_dead(engine, raw, BATCH_ROWS, LOCAL_DATA)
    atoms, encoders = made.W_dec.detach()[DEAD], made.W_enc.detach()[DEAD]
    cosines = torch.nn.functional.normalize(residuals, dim=1) @ atoms.T
    torch.testing.assert_close(cosines.amax(0), torch.ones(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(encoders, ENCODER_LENGTH * length * atoms, rtol=1e-4, atol=1e-6)
    assert not made.b_enc[DEAD].any()


@pytest.mark.parametrize("name", ["relu", "gated", "jumprelu"])
def test_a_latent_that_no_row_could_reach_is_active_again_once_it_is_restarted(dataset, name):
    """Whatever silenced it: a bias, a gate, a threshold."""
    engine, raw = trained(dataset, name, 0)
    made = engine.dictionary

    def active_rows() -> Tensor:
        return made.encode(raw.x_BD).fired()[DEAD]

    with torch.no_grad():
        if isinstance(getattr(made, "code", None), JumpReLU):
            made.scaled_log_threshold[DEAD] = math.log(1e3) / made.config.code.threshold_rate
        else:
            made.get_parameter("b_gate" if name == "gated" else "b_enc")[DEAD] = -1e3
        assert not active_rows().any()
        resample_dead(engine, raw, BATCH_ROWS, LOCAL_DATA)
        assert (active_rows() > 0).all()


def test_a_restarted_threshold_is_to_the_living_ones_as_the_encoder_is_to_theirs(dataset):
    engine, raw = trained(dataset, "jumprelu", 0)
    made = engine.dictionary
    living = made.code.threshold_F.detach()[~made.dead_F].log().mean().exp()
    resample_dead(engine, raw, BATCH_ROWS, LOCAL_DATA)
    torch.testing.assert_close(made.code.threshold_F.detach()[DEAD], (ENCODER_LENGTH * living).expand(len(DEAD)))


def test_badly_reconstructed_rows_are_drawn_far_more_often():
    """One row in twenty has nearly all of the squared loss."""
    made = random_dictionary(find_case("topk"), 0)
    assert isinstance(made, LearnedDictionary)
    rows = random_rows(made.sites, 0, 200).x_BD
    bad = torch.arange(200) % 20 == 0
    rows[bad] *= 30
    hits = 0
    for step in range(20):
        made.at_step(step, 100)
        drawn = worst_rows(made, RawRows(rows, rows), 5, LOCAL_DATA)[:, : rows.shape[1]]
        distance = (drawn[:, None] - made.input.normalise(rows)[None]).square().sum(2)
        hits += int(bad[distance.argmin(1)].sum())
        assert len({tuple(row) for row in drawn.tolist()}) == 5
    assert hits > 90


def test_of_two_rows_each_is_drawn_in_proportion_to_its_squared_loss():
    made = random_dictionary(find_case("topk"), 0)
    rows = random_rows(made.sites, 0, 2)
    with torch.no_grad():
        starts = worst_rows(made, rows, 2, LOCAL_DATA).split([rows.x_BD.shape[1]] * 2, dim=1)
        x_BD, loss_B = starts[0], starts[1].square().sum(1)
        assert loss_B.max() > 1.3 * loss_B.min()
        hits = 0
        for step in range(500):
            made.at_step(step, 1000)
            hits += int(torch.equal(worst_rows(made, rows, 1, LOCAL_DATA)[0, : x_BD.shape[1]], x_BD[0]))
    share, of_loss = (float(weight[0] / weight.sum()) for weight in (loss_B**2, loss_B))
    assert hits / 500 == pytest.approx(share, abs=0.04)
    assert abs(share - of_loss) > 0.08  # that the square makes a difference here


@pytest.mark.parametrize("normaliser", ["standard", "layer_norm", "whiten"])
def test_residuals_are_those_of_the_loss_with_every_normaliser(normaliser):
    made = random_dictionary(find_case("topk"), 0, normaliser=normaliser)
    rows = random_rows(made.sites, 0)
    if made.needs_sample:
        made.prepare(lambda: [rows])
    with torch.no_grad():
        starts = worst_rows(made, rows, len(rows.x_BD), LOCAL_DATA)
        error = made.loss(rows.x_BD, len(rows.x_BD), rows.y_BO).sums["error"]
    torch.testing.assert_close(starts[:, rows.x_BD.shape[1] :].square().sum(), error)


@pytest.mark.parametrize("place", [1, 9, 20])
@pytest.mark.parametrize("case", **named([find_case(name) for name in RESAMPLED]))
def test_two_ranks_restart_the_same_latents_from_the_same_rows(case: Case, place: int):
    def changes(made: LearnedDictionary, rows: RawRows, axis) -> dict[str, Tensor]:
        dead_U = made.dead_F.nonzero().squeeze(1)
        starts = worst_rows(made, rows, len(dead_U), axis)
        parameters = dict(made.named_parameters())
        return {name: put(parameters[name].detach()) for name, put in restarts(made, dead_U, starts).items()}

    def work(rank: int, axes) -> dict[str, Tensor]:
        made = random_dictionary(case, 4, axes=axes)
        rows = random_rows(made.sites, 4)
        with torch.no_grad():
            return changes(made, cut(rows, 0, place) if rank == 0 else cut(rows, place), axes.rows)

    parts = on_two_ranks(work)
    made = random_dictionary(case, 4)
    with torch.no_grad():
        whole = changes(made, random_rows(made.sites, 4), LOCAL_DATA)
    assert parts[0].keys() == parts[1].keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(parts[0][name], parts[1][name])
        torch.testing.assert_close(parts[0][name], value)


def test_fewer_rows_than_dead_latents_restart_as_many_as_there_are():
    made = random_dictionary(find_case("topk"), 0)
    rows = random_rows(made.sites, 0, 4)
    with torch.no_grad():
        assert len(worst_rows(made, rows, 9, LOCAL_DATA)) == 4


def test_it_is_due_when_a_multiple_of_its_rows_is_crossed_and_not_in_the_last_tenth():
    made = random_dictionary(find_case("topk"), 0, resample_every_rows=250)
    due = []
    for step in range(100):
        made.at_step(step, 100)
        if is_due(made, 100):
            due.append(step + 1)
    assert due[:6] == [3, 5, 8, 10, 13, 15]
    assert max(due) <= 91
    never = random_dictionary(find_case("topk"), 0)
    assert not is_due(never, 10**9)


def test_without_dead_latents_nothing_happens(dataset):
    engine, raw = trained(dataset, "topk", 0)
    engine.dictionary.rows_since_fired_F.zero_()
    before = engine.full_parameters()
    assert resample_dead(engine, raw, BATCH_ROWS, LOCAL_DATA) == 0
    after = engine.full_parameters()
    assert all(torch.equal(after[name], before[name]) for name in before)
