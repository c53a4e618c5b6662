"""Dictionaries as after training, in every architecture that some format has a place for, and raw rows to try them on.

Shapes: B rows, D width of the input site, O width of the output site, F latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexray.storage.store import Store
from lexray.training.checkpoint.saved import save_dictionary
from lexray.training.codes.jumprelu import JumpReLU
from lexray.training.codes.topk import TopK
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.archetypal import Archetypal
from lexray.training.dictionaries.base import Dictionary
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics

B, D, D_OUT, F, K = 200, 12, 9, 40, 5

FREE = {"decoder_norm": "free"}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("relu", {}),
    "relu-free": ("relu", FREE),
    "relu_norm_weighted": ("relu_norm_weighted", {}),
    "relu_tanh": ("relu_tanh", {}),
    "p_anneal": ("p_anneal", {}),
    "gated": ("gated", {}),
    "gated-free": ("gated", FREE),
    "gated_p_anneal": ("gated_p_anneal", {}),
    "jumprelu": ("jumprelu", {}),
    "jumprelu-free": ("jumprelu", FREE),
    "topk": ("topk", {}),
    "topk-free": ("topk", FREE),
    "batch_topk": ("batch_topk", {}),
    "batch_topk-free": ("batch_topk", FREE),
    "abs_topk": ("abs_topk", {}),
    "abs_topk-free": ("abs_topk", FREE),
    "group_max": ("group_max", {}),
    "group_max-free": ("group_max", FREE),
    "matryoshka_batch_topk": ("matryoshka_batch_topk", {}),
    "matryoshka-random": ("matryoshka_batch_topk", {"random_prefixes": 3}),
    "hierarchical_topk": ("hierarchical_topk", {}),
    "mp": ("mp", {}),
    "mp-repeat": ("mp", {"rounds": 9, "stop_at_repeat": True, "residual_threshold": 0.05}),
    "mp-unit": ("mp", {"decoder_norm": "unit"}),
    "archetypal": ("archetypal", {"candidates": 20}),
    "archetypal-batch_topk": ("archetypal", {"candidates": 20, "code": "batch_topk"}),
    "archetypal-jumprelu": ("archetypal", {"candidates": 20, "code": "jumprelu"}),
    "relaxed_archetypal": ("relaxed_archetypal", {"candidates": 20}),
    "transcoder": ("transcoder", {}),
    "transcoder-free": ("transcoder", FREE),
    "transcoder-batch_topk": ("transcoder", {"code": "batch_topk"}),
    "transcoder-relu": ("transcoder", {"code": "relu"}),
    "transcoder-jumprelu": ("transcoder", {"code": "jumprelu"}),
    "skip_transcoder": ("skip_transcoder", {}),
    "skip_transcoder-batch_topk": ("skip_transcoder", {"code": "batch_topk"}),
    "skip_transcoder-relu": ("skip_transcoder", {"code": "relu"}),
    "skip_transcoder-jumprelu": ("skip_transcoder", {"code": "jumprelu"}),
}
"""Name of a case to architecture and options."""

SAE_LENS = {
    "relu": "standard", "relu-free": "standard", "relu_norm_weighted": "standard", "relu_tanh": "standard",
    "p_anneal": "standard", "gated": "gated", "gated-free": "gated", "gated_p_anneal": "gated",
    "jumprelu": "jumprelu", "jumprelu-free": "jumprelu", "topk": "topk", "topk-free": "topk",
    "batch_topk": "jumprelu", "batch_topk-free": "jumprelu", "abs_topk": "abstopk", "abs_topk-free": "abstopk",
    "matryoshka_batch_topk": "jumprelu", "matryoshka-random": "jumprelu", "hierarchical_topk": "topk",
    "mp": "matching_pursuit", "mp-repeat": "matching_pursuit", "mp-unit": "matching_pursuit", "archetypal": "topk",
    "archetypal-batch_topk": "jumprelu", "archetypal-jumprelu": "jumprelu", "relaxed_archetypal": "topk",
    "transcoder-batch_topk": "jumprelu_transcoder", "transcoder-relu": "transcoder",
    "transcoder-jumprelu": "jumprelu_transcoder", "skip_transcoder-batch_topk": "jumprelu_skip_transcoder",
    "skip_transcoder-relu": "skip_transcoder", "skip_transcoder-jumprelu": "jumprelu_skip_transcoder",
}  # fmt: skip
"""Cases that SAELens has a place for, and what it calls them."""

DICTIONARY_LEARNING = {
    "relu": "AutoEncoderNew", "relu-free": "AutoEncoderNew", "relu_norm_weighted": "AutoEncoderNew",
    "relu_tanh": "AutoEncoderNew", "p_anneal": "AutoEncoderNew", "gated": "GatedAutoEncoder",
    "gated-free": "GatedAutoEncoder", "gated_p_anneal": "GatedAutoEncoder", "jumprelu": "JumpReluAutoEncoder",
    "jumprelu-free": "JumpReluAutoEncoder", "topk": "AutoEncoderTopK", "topk-free": "AutoEncoderTopK",
    "batch_topk": "BatchTopKSAE", "batch_topk-free": "BatchTopKSAE",
    "matryoshka_batch_topk": "MatryoshkaBatchTopKSAE", "matryoshka-random": "BatchTopKSAE",
    "hierarchical_topk": "AutoEncoderTopK", "archetypal": "AutoEncoderTopK", "archetypal-batch_topk": "BatchTopKSAE",
    "archetypal-jumprelu": "JumpReluAutoEncoder", "relaxed_archetypal": "AutoEncoderTopK",
}  # fmt: skip
"""Cases that dictionary_learning has a place for, and its classes, with the normaliser `standard`."""

SPARSIFY = {
    "topk": "topk", "topk-free": "topk", "hierarchical_topk": "topk", "group_max": "groupmax",
    "group_max-free": "groupmax", "archetypal": "topk", "relaxed_archetypal": "topk", "transcoder": "topk",
    "transcoder-free": "topk", "skip_transcoder": "topk",
}  # fmt: skip
"""Cases that sparsify has a place for, and its activations."""

NORMALISERS = ("standard", "unit_norm", "none", "centre", "whiten")


def raw_rows(width: int, seed: int = 3) -> Tensor:
    """Rows (B, width) with a mean, and dimensions of unequal scale that hang together."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5 + torch.eye(width)
    return torch.randn(B, width, generator=generator) @ mixing * 2 + torch.randn(width, generator=generator)


def statistics(rows: Tensor) -> SiteStatistics:
    return SiteStatistics(mean=tuple(rows.mean(0).tolist()), mean_squared_norm=float(rows.square().sum(1).mean()))


def trained(case: str, normaliser: str = "standard", *, output_width: int = D_OUT, **options: Any) -> Dictionary:
    """A dictionary whose every tensor has a value of its own, as after training."""
    architecture, own = CASES[case]
    config = dictionary_config({"architecture": architecture, "width": F, "target_l0": K, "normaliser": normaliser}
                               | own | options)  # fmt: skip
    x_BD, y_BO = raw_rows(D), raw_rows(output_width, seed=4)
    transcodes = "transcoder" in architecture
    sites = (
        Sites(inputs=(statistics(x_BD),), outputs=(statistics(y_BO),)) if transcodes else Sites.same(statistics(x_BD))
    )
    made = make_dictionary(config, sites)
    for normalise, rows in ((made.input, x_BD), (made.output, y_BO if transcodes else x_BD)):
        if normalise.needs_sample:
            normalise.fit([rows], made.rows)
    _fill(made)
    return made


@torch.no_grad()
def _fill(made: Dictionary) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, tensor in made.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(noise / tensor.shape[-1] ** 0.5 if tensor.ndim > 1 else 0.2 * noise)
        if name == "mixture_FC":
            tensor.copy_(noise.abs() / noise.abs().sum(1, keepdim=True))
    if isinstance(made.code, JumpReLU):
        made.code.set_threshold((0.2 * torch.randn(F, generator=generator) - 1.5).exp())
    for name, buffer in made.named_buffers():
        if name == "candidates_CD":
            buffer.copy_(torch.randn(buffer.shape, generator=generator) / buffer.shape[1] ** 0.5)
        if name == "threshold":
            buffer.fill_(0.25)


def saved(folder: Path, made: Dictionary, **about: Any) -> str:
    """The dictionary's folder."""
    save_dictionary(Store.at(str(folder)), made, about=about)
    return str(folder)


def code_scale(made: Dictionary) -> Tensor:
    """How many times a latent's own code its exported code is (F), with atoms of the length that training gave them.

    Codes that are ranked by code times norm are that product; matching pursuit has unit atoms, so the scale of raw rows
    is in its code.
    """
    ones_F = torch.ones(len(made.W_dec))
    if made.config.architecture == "mp":
        return ones_F * made.input.scale_D[0]
    ranked = isinstance(made.code, TopK) and made.config.decoder_norm == "free" and not isinstance(made, Archetypal)
    return made.W_dec.norm(dim=1) if ranked else ones_F


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value, which is not zero."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert expected.any()
    return float((found - expected).abs().max() / expected.abs().max())
