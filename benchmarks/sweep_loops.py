"""What one would write without lexray: TopK dictionaries trained one after another in one PyTorch loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from lexray.training.mesh.axes import Chosen
from lexray.training.ops.sparse_products import chosen_preactivations, sparse_decode

LR = 1e-3


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Dictionaries and rows of a loop."""

    width: int
    target_l0s: Sequence[int]
    """One dictionary for each."""
    steps: int
    batch_rows: int
    is_sparse: bool
    """Products with the active latents alone, by `lexray.training.ops.sparse_products`; else dense ones."""


def rows_in_memory(folder: str) -> Tensor:
    """All rows of a dataset (rows, D), as they are stored: a loop reads them once and keeps them."""
    return torch.cat([load_file(file)["site"] for file in sorted(Path(folder).rglob("*.safetensors"))])


def run_loop(loop: Loop, folder: str) -> tuple[float, list[float]]:
    """Seconds from the first read to the last step, and the last batch's FVU of each dictionary."""
    began = time.perf_counter()
    rows_RD = rows_in_memory(folder)
    order = torch.Generator().manual_seed(0)
    scale = rows_RD.shape[1] ** 0.5 / rows_RD[:4096].float().norm(dim=1).mean()
    fvu = [_train(loop, k, rows_RD, scale, order) for k in loop.target_l0s]
    return time.perf_counter() - began, fvu


def _train(loop: Loop, k: int, rows_RD: Tensor, scale: Tensor, order: torch.Generator) -> float:
    D = rows_RD.shape[1]
    W_dec = F.normalize(torch.randn(loop.width, D), dim=1).requires_grad_()
    W_enc = W_dec.detach().clone().requires_grad_()
    b_enc, b_dec = torch.zeros(loop.width, requires_grad=True), torch.zeros(D, requires_grad=True)
    parameters = [W_enc, b_enc, W_dec, b_dec]
    adam = torch.optim.Adam(parameters, lr=LR, fused=True)
    reconstruct: Callable[..., Tensor] = _sparse if loop.is_sparse else _dense
    fvu = float("nan")
    for _ in range(loop.steps):
        x_BD = rows_RD[torch.randint(len(rows_RD), (loop.batch_rows,), generator=order)].float() * scale
        error = (x_BD - reconstruct(x_BD, W_enc, b_enc, W_dec, b_dec, k)).square().sum()
        (error / loop.batch_rows).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            W_dec.copy_(F.normalize(W_dec, dim=1))
        fvu = float(error.detach() / (x_BD - x_BD.mean(0)).square().sum())
    return fvu


def _dense(x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int) -> Tensor:
    values_BK, picks_BK = torch.topk(F.relu(F.linear(x_BD - b_dec, W_enc, b_enc)), k, dim=1)
    code_BF = torch.zeros(len(x_BD), len(W_enc)).scatter(1, picks_BK, values_BK)
    return code_BF @ W_dec + b_dec


def _sparse(x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int) -> Tensor:
    bias_F = b_enc - W_enc @ b_dec  # instead of subtracting b_dec from every row
    with torch.no_grad():
        pre_BF = F.linear(x_BD, W_enc, bias_F)
        picks_BK = torch.topk(pre_BF, k, dim=1).indices
    chosen = Chosen(picks_BK.flatten(), torch.arange(0, picks_BK.numel() + 1, k))
    values_N = F.relu(chosen_preactivations(pre_BF, chosen, x_BD, W_enc, bias_F))
    return sparse_decode(values_N, chosen, W_dec) + b_dec
