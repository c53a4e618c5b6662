"""Every architecture in small, with options that it accepts and sites that it is made for; derived from the table.

Shapes: B rows, D width of the input sites, O width of the output sites, F latents.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lexray.training.codes.penalised import Penalised
from lexray.training.dictionaries import ARCHITECTURES, dictionary_config, make_dictionary
from lexray.training.dictionaries.architecture import Architecture
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.mesh.axes import ONE_PROCESS, Axes

B, D, D_OUT, F, K = 24, 7, 5, 30, 5
DEAD_AFTER = 100
K_AUX = 3

NEEDED: dict[str, dict[str, Any]] = {
    "pca": {"width": D - 1, "target_l0": 3},
    "kmeans": {"target_l0": 1},
    "nmf": {"signed_input": "split"},
    "jumprelu": {"bandwidth": 0.2},
}
"""Options without which an architecture cannot be made in this size, or shows too little of itself."""

FREE = {"decoder_norm": "free"}
UNIT = {"decoder_norm": "unit"}
IGNORED = {"decoder_norm": "ignored"}
AUX = {"terms": {"auxk": 0.3}}
CODES = {
    "topk": {},
    "batch_topk": {},
    "relu": {},
    "jumprelu": {"bandwidth": 0.2},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "relu": {"free": FREE, "ignored": IGNORED, "aux": AUX, "aux-free": {**AUX, **FREE}},
    "relu_norm_weighted": {"unit": UNIT},
    "relu_tanh": {"unit": UNIT},
    "p_anneal": {"free": FREE},
    "gated": {"free": FREE, "aux": AUX},
    "gated_p_anneal": {"free": FREE},
    "jumprelu": {
        "step": {"l0_loss": "step"},
        "quadratic": {"l0_loss": "quadratic"},
        "tanh": {"l0_loss": "tanh"},
        "tanh-free": {"l0_loss": "tanh", **FREE},
        "to-input": {"gradient": "threshold_and_input", "l0_loss": "step"},
        "quadratic-to-input": {"gradient": "threshold_and_input", "l0_loss": "quadratic"},
        "aux": AUX,
        "preact": {"preact_weight": 0.7},
        "preact-all-free": {"preact_weight": 0.7, "preact_over": "all", **FREE},
    },
    "topk": {"free": FREE, "ignored": IGNORED, "multi": {"multi_topk": True}},
    "batch_topk": {"free": FREE, "multi": {"multi_topk": True}},
    "abs_topk": {"free": FREE},
    "group_max": {"free": FREE},
    "matryoshka_batch_topk": {"free": FREE, "random": {"random_prefixes": 3}},
    "hierarchical_topk": {"free": FREE},
    "mp": {"unit": UNIT, "threshold": {"residual_threshold": 0.8}, "at-repeat": {"stop_at_repeat": True, "rounds": 12}},
    "omp": {"threshold": {"residual_threshold": 0.8}},
    "archetypal": {
        "few-candidates": {"candidates": 11, "learn_scale": False},
        **{code: {"code": code, **CODES[code]} for code in ("batch_topk", "jumprelu")},
    },
    "relaxed_archetypal": {
        "few-candidates": {"candidates": 11},
        **{code: {"code": code, **CODES[code]} for code in ("batch_topk", "jumprelu")},
    },
    "transcoder": {
        "free": FREE,
        **{code: {"code": code, **CODES[code]} for code in ("batch_topk", "relu", "jumprelu")},
    },
    "skip_transcoder": {code: {"code": code, **CODES[code]} for code in ("batch_topk", "relu", "jumprelu")},
    "crosscoder": {"unit": UNIT, "ignored": IGNORED, "concatenated": {"code_norm": "concatenated"}},
    "crosscoder_batch_topk": {
        "unit": UNIT,
        "mixed": {"code_norm": "mixed"},
        "mixed-unit": {"code_norm": "mixed", **UNIT},
    },
    "snmf": {"winners": {"atom_share": 0.4}, "kmeans": {"atom_init": "kmeans"}},
    "pca": {"largest": {"select": "largest"}},
}
"""What else is tried of an architecture besides its defaults."""


class Case(NamedTuple):
    """An architecture with some options."""

    architecture: str
    variant: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.architecture}-{self.variant}" if self.variant else self.architecture

    @property
    def cls(self) -> Architecture:
        return ARCHITECTURES[self.architecture]

    @property
    def option_names(self) -> frozenset[str]:
        return self.cls.option_names(self.options.get("code"))

    @property
    def code(self) -> str:
        """The kind of its code; of dictionaries that solve for theirs, their name."""
        code = self.cls.code(self.options.get("code"))
        return code.kind if code else self.architecture


def default_case(name: str) -> Case:
    return Case(name, "", NEEDED.get(name, {}))


DEFAULTS = [default_case(name) for name in ARCHITECTURES]
"""One case of each architecture."""
CASES = [
    Case(name, variant, {**NEEDED.get(name, {}), **options})
    for name in ARCHITECTURES
    for variant, options in {"": {}, **VARIANTS.get(name, {})}.items()
]
LEARNED = [case for case in CASES if case.cls.Config.learns_by == "gradient"]
LEARNED_DEFAULTS = [case for case in DEFAULTS if case.cls.Config.learns_by == "gradient"]
BASELINES = [case for case in CASES if case.cls.Config.learns_by == "statistics"]
PENALTY_CODES = (
    "relu", "relu_tanh", "p_anneal", "gated", "gated_p_anneal", "jumprelu",
)  # fmt: skip
PENALISED = [case for case in LEARNED if case.code in PENALTY_CODES]


def find_case(name: str) -> Case:
    """The case of this id."""
    return next(case for case in CASES if str(case) == name)


# Rows and sites ---------------------------------------------------------------------------------------------------


def sites_of(case: Case, widths: tuple[int, int] = (D, D_OUT), seed: int = 0) -> Sites:
    """Sites of random statistics: one of width D, one of D to read and one of D_OUT to write, or two at once."""
    generator = torch.Generator().manual_seed(seed)

    def site(width: int) -> SiteStatistics:
        mean = torch.randn(width, generator=generator)
        return SiteStatistics(mean=tuple(mean.tolist()), mean_squared_norm=float(mean.square().sum()) + 2.5)

    first, second = map(site, widths)
    if case.cls.kind == "sae":
        return Sites.same(first)
    if case.cls.kind == "crosscoder":
        return Sites.same(first, second)
    return Sites(inputs=(first,), outputs=(second,))


def random_rows(sites: Sites, seed: int, count: int = B, dtype: torch.dtype = torch.float64) -> RawRows:
    """Raw rows for these sites."""
    generator = torch.Generator().manual_seed(seed)
    x_BD = (torch.randn(count, sites.input_width, generator=generator, dtype=torch.float64) * 1.7 + 0.3).to(dtype)
    if sites.reconstructs_its_input:
        return RawRows(x_BD, x_BD)
    noise_BO = torch.randn(count, sites.output_width, generator=generator, dtype=torch.float64)
    return RawRows(x_BD, (x_BD.double().sum(1, keepdim=True) + noise_BO).to(dtype))


def cut(rows: RawRows, start: int, stop: int | None = None) -> RawRows:
    """Some of the rows."""
    return RawRows(rows.x_BD[start:stop], rows.y_BO[start:stop])


# Dictionaries -----------------------------------------------------------------------------------------------------


def config_of(case: Case, **options: Any) -> Any:
    base = {"width": F, "target_l0": K, "dead_after_rows": DEAD_AFTER, "sample_rows": 400}
    return dictionary_config({"architecture": case.architecture, **base, **case.options, **options})


def untrained(case: Case, seed: int = 0, axes: Axes = ONE_PROCESS, **options: Any) -> Dictionary:
    """As it is made, in float32."""
    return make_dictionary(config_of(case, **options), sites_of(case, seed=seed), seed=seed, axes=axes)


def random_dictionary(
    case: Case, seed: int = 0, *, dead: int = 9, axes: Axes = ONE_PROCESS, **options: Any
) -> Dictionary:
    """A dictionary in float64 as it may be amid training: parameters random, `dead` latents silent for too long.

    Atoms have any norm, biases are away from zero, and half of the training is done. Baselines have learned from a few
    batches.
    """
    if case.cls.Config.learns_by == "statistics":
        made = learned_from(untrained(case, seed, **options).double(), seed)
        made.rows, made.latents, made.pairs = axes
    else:
        if "k_aux" in case.option_names:
            options.setdefault("k_aux", K_AUX)
        made = untrained(case, seed, axes, **options).double()
        randomise(made, seed)
    silent = torch.randperm(made.config.width, generator=torch.Generator().manual_seed(seed))[:dead]
    made.rows_since_fired_F[silent] = DEAD_AFTER
    made.at_step(50, 100)
    return made


@torch.no_grad()
def randomise(made: Dictionary, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in made.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        width = parameter.shape[-1] if parameter.ndim else 1
        # Thresholds about 0.15, where many pre-activations are.
        parameter.copy_(noise / width**0.5)
        if name == "scaled_log_threshold":
            parameter.copy_((0.3 * noise - 2) / made.config.code.threshold_rate)
    for name, buffer in made.named_buffers():
        if name == "candidates_CD":
            buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype) / buffer.shape[1] ** 0.5)
    if isinstance(getattr(made, "code", None), Penalised):
        made.controller.log_coefficient.fill_(-1.3)


def learned_from(made: Dictionary, seed: int, steps: int = 3) -> Dictionary:
    """A baseline after its start and some batches of random rows."""
    dtype = made.input.mean_D.dtype
    batches = [random_rows(made.sites, 1000 * seed + step, 60, dtype) for step in range(steps)]
    made.prepare(lambda: batches)
    for step, batch in enumerate(batches):
        made.at_step(step, steps)
        made.learn(batch.x_BD, len(batch.x_BD))
    return made


def loss_of(made: Dictionary, rows: RawRows, total_rows: int | None = None) -> Any:
    """Terms of the loss on these rows."""
    return made.loss(rows.x_BD, total_rows or len(rows.x_BD), rows.y_BO)


def gradients(made: Dictionary, loss: Tensor) -> dict[str, Tensor]:
    """By name; zero where the loss does not depend on a parameter."""
    found = torch.autograd.grad(loss, list(made.parameters()), allow_unused=True)
    pairs = zip(made.named_parameters(), found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


def named(cases: list[Case]) -> dict[str, Any]:
    """Arguments of `parametrize` beside the name."""
    return {"argvalues": cases, "ids": [str(case) for case in cases]}


def away_from_zero(made: Dictionary, bias: float) -> Dictionary:
    """The same with every encoder bias moved."""
    with torch.no_grad():
        for name in ("b_enc", "b_gate", "b_mag"):
            if name in dict(made.named_parameters()):
                made.get_parameter(name).add_(bias)
    return made
