"""Errors of reconstructions: by all active latents, by nested prefixes of the dictionary, by the largest 1 to K.

Shapes: B rows on this rank, O output width, F latents, N chosen pairs, K most active latents of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lexray.training.mesh.axes import Chosen, FeatureAxis
from lexray.training.objectives.forward import Reconstruction
from lexray.training.ops.linear import Decoder
from lexray.training.ops.sparse_products import prefix_errors, sparse_decode
from lexray.training.ops.topk import subset


def squared_error(error_BO: Tensor) -> Reconstruction:
    """The sum over rows of ||error||^2."""
    return Reconstruction(error_BO.square().sum(), error_BO)


def nested_errors(
    values_N: Tensor, chosen: Chosen, decoder: Decoder, target_BO: Tensor, ends: Sequence[int], first: int,
    latents: FeatureAxis,
) -> Reconstruction:  # fmt: skip
    """The sum over prefixes m of ||target - the first m latents times their atoms||^2.

    Bussmann et al., Learning multi-level features with Matryoshka SAEs (2025), section 3. `ends` are the prefixes'
    widths, rising; `first` is the number of this rank's first latent.
    """
    start, parts = 0, []
    for end in ends:
        inside_N = (chosen.latents + first >= start) & (chosen.latents + first < end)
        parts.append(sparse_decode(values_N[inside_N], subset(chosen, inside_N), decoder.atoms_FO))
        start = end
    if latents.size > 1:  # one reduction instead of one for each prefix, for the memory of all of them
        parts = list(latents.all_reduce(torch.stack(parts)))
    error_BO, total = target_BO, target_BO.new_zeros(())
    for part_BO in parts:
        error_BO = error_BO - part_BO
        total = total + error_BO.square().sum()
    return Reconstruction(total, error_BO)


def mean_over_k(
    values_N: Tensor, chosen: Chosen, decoder: Decoder, target_BO: Tensor, latents: FeatureAxis
) -> Reconstruction:
    """The mean over k from 1 to K of ||target - the k largest values times their atoms||^2.

    Balagansky et al., Train one sparse autoencoder across multiple sparsity budgets (2025). Entries are ranked times
    the norm of their atom where norms count. Every row has K chosen latents over all ranks.
    """
    rows_N, latents_N = chosen.rows, chosen.latents
    scores_N = values_N.detach() if decoder.norms_F is None else values_N.detach() * decoder.norms_F[latents_N]
    # Of each row the entries that this rank chose, the others' places left open, in the order of all ranks' scores.
    column_N = torch.arange(len(rows_N), device=rows_N.device) - chosen.offsets[rows_N]
    num_chosen = latents.count(len(latents_N)) // (len(chosen.offsets) - 1)
    scores_BK = scores_N.new_full((len(target_BO), num_chosen), -torch.inf)
    scores_BK[rows_N, column_N] = scores_N
    place_N = latents.global_rank(scores_BK)[rows_N, column_N]
    picks_BK = torch.full_like(scores_BK, -1, dtype=torch.int64).index_put((rows_N, place_N), latents_N)
    values_BK = torch.zeros_like(scores_BK).index_put((rows_N, place_N), values_N)
    total, error_BO = prefix_errors(values_BK, picks_BK, decoder.atoms_FO, target_BO, latents)
    return Reconstruction(total / num_chosen, error_BO)
