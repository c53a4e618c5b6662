"""The equations of every architecture, written once more: densely, for autograd, with none of the modules' code.

Only parameters, buffers and options of a module are read. Shapes: B rows, D width of the input sites, O width of the
output sites, F latents, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from training_cases import Case

from lexray.training.dictionaries.base import Dictionary, RawRows


class Dense(NamedTuple):
    """A loss, and the code and error that it comes from."""

    loss: Tensor
    code_BF: Tensor
    error_BO: Tensor


class Problem:
    """Normalised rows and what an architecture's equations are made of."""

    def __init__(self, case: Case, made: Dictionary, rows: RawRows) -> None:
        self.made, self.config = made, made.config
        self.x = (rows.x_BD - made.input.mean_D) / made.input.scale_D
        same = rows.x_BD is rows.y_BO
        self.y = self.x if same else (rows.y_BO - made.target.mean_D) / made.target.scale_D
        self.k = int(made.config.target_l0)
        self.b_dec = made.b_dec
        self.atoms, self.norms = atoms_of(case, made)
        self.offset = made.b_dec + (self.x @ made.W_skip.T if hasattr(made, "W_skip") else 0)
        if hasattr(made, "W_enc"):
            # Transcoders have no bias of their input, and JumpReLU does not subtract the decoder's.
            centred = case.cls.kind != "transcoder" and case.code != "jumprelu"
            self.z = (self.x - made.b_dec if centred else self.x) @ made.W_enc.T + getattr(made, "b_enc", 0)

    @property
    def weight(self) -> Tensor:
        """The penalty's coefficient."""
        return self.made.controller.log_coefficient.exp().float()

    def error(self, code_BF: Tensor) -> Tensor:
        return self.y - code_BF @ self.atoms - self.offset

    def squared(self, code_BF: Tensor) -> Tensor:
        """Mean over rows of the squared error."""
        return (self.error(code_BF) ** 2).sum(1).mean()


def dense_loss(case: Case, made: Dictionary, rows: RawRows) -> Dense:
    """The loss in the docstring of the architecture."""
    problem = Problem(case, made, rows)
    loss, code_BF = EQUATIONS[case.code](problem)
    return Dense(loss, code_BF, problem.error(code_BF))


def atoms_of(case: Case, made: Dictionary) -> tuple[Tensor, Tensor]:
    """Atoms (F, O), and how long each counts (F)."""
    ones = torch.ones(made.config.width, dtype=torch.float64)
    if hasattr(made, "mixture_FC"):
        atoms = made.mixture_FC @ made.candidates_CD + getattr(made, "relaxation_FD", 0)
        return (atoms * made.log_scale.exp() if hasattr(made, "log_scale") else atoms), ones
    norms = made.W_dec.square().sum(1).sqrt()
    if case.cls.kind == "crosscoder":
        first = made.sites.inputs[0].width
        summed = made.W_dec[:, :first].square().sum(1).sqrt() + made.W_dec[:, first:].square().sum(1).sqrt()
        norms = {"sum": summed, "concatenated": norms, "mixed": norms + 0.1 * summed}[made.config.code_norm]
    if made.config.unit_atoms:
        return made.W_dec / norms[:, None], ones
    return made.W_dec, norms if made.config.decoder_norm == "free" else ones


def largest(values: Tensor, k: int) -> Tensor:
    """One where an entry is among the k largest of its row, else zero."""
    return torch.zeros_like(values).scatter(-1, values.topk(k, dim=-1).indices, 1.0).detach()


# Penalties --------------------------------------------------------------------------------------------------------

Equation = Callable[[Problem], tuple[Tensor, Tensor]]


def penalised(penalty: Callable[[Problem, Tensor], Tensor]) -> Equation:
    """relu, and a penalty of the activations times their atoms' norms."""

    def equation(p: Problem) -> tuple[Tensor, Tensor]:
        f = torch.relu(p.z)
        return p.squared(f) + p.weight * penalty(p, f * p.norms).sum(1).mean() + weighted_auxk(p, f), f

    return equation


def l1(p: Problem, weighted: Tensor) -> Tensor:
    return weighted


def tanh(p: Problem, weighted: Tensor) -> Tensor:
    return torch.tanh(p.config.code.tanh_scale * p.x.shape[1] ** 0.5 * weighted)


def lp(p: Problem, weighted: Tensor) -> Tensor:
    """At half of the training: 4 / 5 of the way from 10 % to 60 %, in ten jumps, is eight of them."""
    power, epsilon = 1 + (p.config.code.p_end - 1) * 8 / 10, p.config.code.p_smoothing
    inside = torch.where(weighted > 0, weighted, 1.0)
    return torch.where(weighted > 0, (inside + epsilon) ** power - epsilon**power, 0.0)


def gated(penalty: Callable[[Problem, Tensor], Tensor]) -> Equation:
    def equation(p: Problem) -> tuple[Tensor, Tensor]:
        pi = torch.relu(p.z + p.made.b_gate)
        f = torch.relu(p.z * p.made.r_mag.exp() + p.made.b_mag) * (pi > 0)
        gate_error = ((p.y - pi @ p.atoms.detach() - p.offset.detach()) ** 2).sum(1).mean()
        loss = p.squared(f) + gate_error + p.weight * penalty(p, pi * p.norms).sum(1).mean()
        return loss + weighted_auxk(p, f), f

    return equation


def jumprelu(p: Problem) -> tuple[Tensor, Tensor]:
    """Straight-through parts are added as terms of value zero whose derivative is the stated one."""
    c, z = p.config.code, p.z
    t = (c.threshold_rate * p.made.scaled_log_threshold).exp().expand_as(z)
    above = (z > t).double()
    inside = ((z - t).abs() < c.bandwidth / 2).double().detach() / c.bandwidth
    to_input = float(c.gradient == "threshold_and_input")
    moved = to_input * (z - z.detach()) - (t - t.detach())
    f = above * z + t.detach() * inside * moved
    steps = above + inside * moved
    if c.l0_loss == "step":
        sparsity = p.weight * steps.sum(1).mean()
    elif c.l0_loss == "quadratic":
        aim = p.config.target_l0 * c.initial_coefficient / p.weight
        sparsity = c.initial_coefficient * ((steps.sum(1) / aim - 1) ** 2).mean()
    else:
        sparsity = p.weight * tanh(p, f * p.norms).sum(1).mean()
    seen = (
        p.made.rows_since_fired_F >= p.config.dead_after_rows if c.preact_over == "dead" else torch.ones_like(above[0])
    )
    preact = (torch.relu(t - z) * p.norms * seen).sum(1).mean()
    return p.squared(f) + sparsity + c.preact_weight * preact + weighted_auxk(p, f), f


# The top-k family -------------------------------------------------------------------------------------------------


def weighted_auxk(p: Problem, f: Tensor) -> Tensor | float:
    """The term of penalty codes, which have it when they are asked for it."""
    weight = p.config.code.terms.get("auxk")
    return weight * auxk(p, p.error(f)) if weight else 0.0


def auxk(p: Problem, e: Tensor, signed: bool = False) -> Tensor:
    """Gao et al. (2024), appendix A.2: the dead latents' reconstruction of the residual e, over e's own variance."""
    e = e.detach()
    dead = p.made.rows_since_fired_F >= p.config.dead_after_rows
    if not dead.any():
        return torch.zeros((), dtype=e.dtype)
    candidates = p.z[:, dead] if signed else torch.relu(p.z[:, dead])
    k_aux = getattr(p.config.code, "k_aux", p.y.shape[1] // 2)
    chosen = largest(candidates.abs() * p.norms[dead], min(k_aux, int(dead.sum())))
    return ((e - candidates * chosen @ p.atoms[dead]) ** 2).sum() / ((e - e.mean(0)) ** 2).sum()


def row_topk(p: Problem, k: int) -> Tensor:
    f = torch.relu(p.z)
    return f * largest(f * p.norms, k)


def whole_topk(p: Problem, k: int) -> Tensor:
    f = torch.relu(p.z)
    return f * largest((f * p.norms).flatten(), k * len(f)).view_as(f)


def family(choose: Callable[[Problem, int], Tensor]) -> Equation:
    """One choice of k latents; AuxK, and Multi-TopK where it is asked for."""

    def equation(p: Problem) -> tuple[Tensor, Tensor]:
        f = choose(p, p.k)
        loss = p.squared(f) + p.config.code.aux_weight * auxk(p, p.error(f))
        return loss + p.squared(choose(p, 4 * p.k)) / 8 if p.config.code.multi_topk else loss, f

    return equation


def abs_topk(p: Problem) -> tuple[Tensor, Tensor]:
    f = p.z * largest(p.z.abs() * p.norms, p.k)
    return p.squared(f) + p.config.code.aux_weight * auxk(p, p.error(f), signed=True), f


def group_max(p: Problem, k: int) -> Tensor:
    f = torch.relu(p.z)
    groups = (f * p.norms).view(len(f), k, -1)
    return f * largest(groups, 1).view_as(f)


def matryoshka(p: Problem) -> tuple[Tensor, Tensor]:
    f, width = whole_topk(p, p.k), p.config.width
    widths = {2, 4, 8, 15, 30}  # of 30 latents; the last test of the schedules has random ones
    if p.config.code.random_prefixes:
        widths = p.made.code.prefix_widths()
    first = [f * (torch.arange(width) < m) for m in widths]
    return torch.stack([p.squared(part) for part in first]).sum() + p.config.code.aux_weight * auxk(p, p.error(f)), f


def hierarchical(p: Problem) -> tuple[Tensor, Tensor]:
    every = torch.stack([p.squared(row_topk(p, k)) for k in range(1, p.k + 1)])
    f = row_topk(p, p.k)
    return every.mean() + p.config.code.aux_weight * auxk(p, p.error(f)), f


# Matching pursuit -------------------------------------------------------------------------------------------------


def mp(p: Problem) -> tuple[Tensor, Tensor]:
    """Unrolled, row by row, for autograd to go through."""
    residuals, codes = zip(*(pursue_row(p, row) for row in p.y - p.b_dec), strict=True)
    return (torch.stack(residuals) ** 2).sum(1).mean(), torch.stack(codes)


def pursue_row(p: Problem, r: Tensor) -> tuple[Tensor, Tensor]:
    code, picked = torch.zeros(len(p.atoms), dtype=r.dtype), set()
    for _ in range(p.config.code.rounds or p.k):
        scores = p.atoms @ r
        j = int(scores.argmax())
        if r.norm() < p.config.code.residual_threshold or scores[j] <= 0:
            break
        code = code.index_add(0, torch.tensor([j]), scores[j : j + 1])
        r = r - scores[j] * p.atoms[j]
        if p.config.code.stop_at_repeat and j in picked:
            break
        picked.add(j)
    return r, code


def omp(p: Problem) -> tuple[Tensor, Tensor]:
    """Row by row; the coefficients are solved for with gradient, over the best of all subsets of the picked atoms."""
    codes = torch.stack([orthogonal_row(p, row) for row in p.y - p.b_dec])
    return p.squared(codes), codes


def orthogonal_row(p: Problem, x: Tensor) -> Tensor:
    code, picked = torch.zeros(len(p.atoms), dtype=x.dtype), []
    for _ in range(p.config.code.rounds or p.k):
        residual = x - code @ p.atoms
        scores = p.atoms @ residual
        j = int(scores.argmax())
        if residual.norm() < p.config.code.residual_threshold or scores[j] <= 1e-6 * x.norm():
            break
        picked.append(j)
        code = nonnegative_fit(p.atoms, picked, x)
    return code


def nonnegative_fit(atoms: Tensor, picked: list[int], x: Tensor) -> Tensor:
    """The least squares over every subset of the atoms whose coefficients are all positive: the best of them."""
    best = torch.zeros(len(atoms), dtype=x.dtype)
    for bits in range(1, 2 ** len(picked)):
        some = torch.tensor([j for place, j in enumerate(picked) if bits >> place & 1])
        fitted = torch.linalg.solve(atoms[some] @ atoms[some].T, atoms[some] @ x)
        code = torch.zeros(len(atoms), dtype=x.dtype).index_put((some,), fitted)
        if (fitted > 0).all() and (x - code @ atoms).norm() < (x - best @ atoms).norm():
            best = code
    return best


EQUATIONS: dict[str, Equation] = {
    "relu": penalised(l1),
    "relu_tanh": penalised(tanh),
    "p_anneal": penalised(lp),
    "gated": gated(l1),
    "gated_p_anneal": gated(lp),
    "jumprelu": jumprelu,
    "topk": family(row_topk),
    "batch_topk": family(whole_topk),
    "abs_topk": abs_topk,
    "group_max": family(group_max),
    "matryoshka_batch_topk": matryoshka,
    "hierarchical_topk": hierarchical,
    "mp": mp,
    "omp": omp,
}
