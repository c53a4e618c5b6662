"""A step of the top-k family makes one tensor of batch by width, its pre-activations, and none in the backward pass.

Nor does one of matching pursuit, whose rounds share theirs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from training_cases import Case, find_case, named, random_rows, sites_of

from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.base import Dictionary
from lexray.training.mesh import axes
from lexray.training.objectives.forward import BatchSums
from lexray.training.ops import topk as selection

ROWS, WIDTH, L0 = 256, 1024, 4
LARGE = ROWS * WIDTH // 4
"""Numbers from which a tensor counts: a quarter of a matrix, many times the parameters (1024 x 12) and the chunks."""
FAMILY = [
    find_case(name)
    for name in (
        "topk", "topk-free", "topk-multi", "batch_topk", "batch_topk-free", "abs_topk", "group_max", "group_max-free",
        "matryoshka_batch_topk", "hierarchical_topk", "archetypal", "relaxed_archetypal-batch_topk", "transcoder",
        "skip_transcoder-batch_topk", "crosscoder_batch_topk",
    )
]  # fmt: skip


class Made(NamedTuple):
    """A tensor that an operation allocated."""

    operation: str
    shape: tuple[int, ...]


class Allocations(TorchDispatchMode):
    """Writes down every large tensor that is not a view of an operand."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Made] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {storage(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor) and tensor.numel() >= LARGE and storage(tensor) not in given:
                self.made.append(Made(str(func), tuple(tensor.shape)))
        return out


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def dictionary_at_work(case: Case) -> tuple[Dictionary, Any]:
    """With dead latents, AuxK, and a running threshold that fits; and its rows."""
    options = {"width": WIDTH, "target_l0": L0, "k_aux": 3, "dead_after_rows": 100, "sample_rows": 4096}
    extra = {"candidates": 8} if "archetypal" in case.architecture else {}
    config = dictionary_config({"architecture": case.architecture, **options, **extra, **case.options})
    made = make_dictionary(config, sites_of(case))
    rows = random_rows(made.sites, 0, ROWS, torch.float32)
    if made.needs_sample:
        made.prepare(lambda: [rows])
    made.rows_since_fired_F[::7] = 10**6
    terms = made.loss(rows.x_BD, ROWS, rows.y_BO)
    assert terms.sums["aux"] > 0
    if "smallest_kept" in terms.observed:
        made.after_step(BatchSums(ROWS, {}, torch.zeros(WIDTH), terms.observed))
    return made, rows


@pytest.mark.parametrize("case", **named(FAMILY))
def test_a_step_makes_one_matrix_of_batch_by_width_and_its_backward_pass_none(case, monkeypatch):
    monkeypatch.setattr(selection, "CHUNK_ENTRIES", 4 * WIDTH)
    monkeypatch.setattr(axes, "TIED_ENTRIES", 4 * WIDTH)
    made, rows = dictionary_at_work(case)
    with Allocations() as forward:
        loss = made.loss(rows.x_BD, ROWS, rows.y_BO).loss
    assert [tensor.shape for tensor in forward.made] == [(ROWS, WIDTH)], forward.made
    with Allocations() as backward:
        loss.backward()
    assert backward.made == []


@pytest.mark.parametrize("case", **named(FAMILY))
def test_encoding_makes_one_matrix_of_batch_by_width(case, monkeypatch):
    monkeypatch.setattr(selection, "CHUNK_ENTRIES", 4 * WIDTH)
    monkeypatch.setattr(axes, "TIED_ENTRIES", 4 * WIDTH)
    made, rows = dictionary_at_work(case)
    with torch.no_grad(), Allocations() as inference:
        made(rows.x_BD)
    assert [tensor.shape for tensor in inference.made] == [(ROWS, WIDTH)], inference.made


@pytest.mark.parametrize("rounds", [2, 12])
def test_all_rounds_of_matching_pursuit_share_one_matrix_and_their_backward_pass_makes_none(rounds):
    made, x_BD = pursuit(rounds)
    with Allocations() as forward:
        loss = made.loss(x_BD, ROWS).loss
    assert [tensor.shape for tensor in forward.made] == [(ROWS, WIDTH)], forward.made
    with Allocations() as backward:
        loss.backward()
    assert backward.made == []


def test_a_round_of_matching_pursuit_keeps_its_pick_and_coefficient_and_no_residual():
    """Two numbers a row, however wide the site is: the backward pass walks back from the last residual."""
    few, many = (numbers_kept(*pursuit(rounds)) for rounds in (2, 12))
    assert many - few == 2 * ROWS * 10


def pursuit(rounds: int) -> tuple[Dictionary, Tensor]:
    """A matching pursuit of which every row picks an atom in every round, and its rows."""
    case = find_case("mp")
    options = {"architecture": "mp", "width": WIDTH, "target_l0": L0, "rounds": rounds}
    made = make_dictionary(dictionary_config(options), sites_of(case))
    return made, random_rows(made.sites, 0, ROWS, torch.float32).x_BD


def numbers_kept(made: Dictionary, x_BD: Tensor) -> int:
    """Numbers that the backward pass of a step is left, parameters among them."""
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        terms = made.loss(x_BD, ROWS)
    assert terms.sums["active"] > 0
    return sum(kept)


def test_a_dense_step_would_be_noticed():
    x, W = torch.randn(ROWS, 12), torch.randn(WIDTH, 12, requires_grad=True)
    with Allocations() as forward:
        loss = (torch.relu(x @ W.T) @ W).square().sum()
    with Allocations() as backward:
        loss.backward()
    assert len(forward.made) == 2
    assert len(backward.made) >= 2
