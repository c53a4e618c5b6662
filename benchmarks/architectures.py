"""What one training step of each architecture costs, against TopK's.

All take turns step by step in one process on the same rows, so that a busy machine slows them alike; the medians are
compared. Penalty families are measured after some steps, when their L0 has come down and few pairs matter.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from benchmarks.turns import print_ratios, take_turns
from lexray.training.dictionaries import ARCHITECTURES, dictionary_config, make_dictionary
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.objectives.forward import BatchSums, LossOutput

CHANGES = {"pca": {"width": None}, "kmeans": {"target_l0": 1}, "nmf": {"signed_input": "split"}}
"""Options without which a baseline refuses the common ones; the width of None is that of the site."""
SETTLING_STEPS = 60


def rows_of(count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Rows made of 4 x width sparse features."""
    features = torch.randn(4 * width, width, generator=generator) / width**0.5
    code = torch.rand(count, 4 * width, generator=generator) * (
        torch.rand(count, 4 * width, generator=generator) < 0.01
    )
    return code @ features


def make(name: str, x_BD: torch.Tensor, width: int, l0: int, batch_rows: int) -> tuple[Dictionary, RawRows]:
    """An untrained dictionary and a batch for it: transcoders and crosscoders get the same site twice."""
    changes = {k: x_BD.shape[1] if v is None else v for k, v in CHANGES.get(name, {}).items()}
    config = dictionary_config({"architecture": name, "width": width, "target_l0": l0, **changes})
    mean_squared_norm = float(x_BD.square().sum(1).mean())
    site = SiteStatistics(mean=tuple(x_BD.mean(0).tolist()), mean_squared_norm=mean_squared_norm)
    kind = ARCHITECTURES[name].kind
    sites = Sites.same(site, site) if kind == "crosscoder" else Sites.same(site)
    if kind == "transcoder":
        sites = Sites(inputs=(site,), outputs=(site,))
    x_BD = torch.cat([x_BD, x_BD], 1) if kind == "crosscoder" else x_BD
    made = make_dictionary(config, sites)
    rows = RawRows(x_BD, x_BD)
    if made.needs_sample:
        made.prepare(lambda: [rows])
    return made, RawRows(rows.x_BD[:batch_rows], rows.y_BO[:batch_rows])


def stepper(made: Dictionary, rows: RawRows) -> Callable[[], None]:
    """One training step without DeepSpeed: loss, gradient, clipping, Adam, projections, counters."""
    adam = torch.optim.Adam(made.parameters(), lr=1e-3, fused=True) if made.config.learns_by == "gradient" else None

    def step() -> None:
        made.at_step(made.step + 1, 10_000)
        terms = learned(adam) if adam is not None else made.learn(rows.x_BD, len(rows.x_BD))
        sums = {name: float(value.detach()) for name, value in terms.sums.items()}
        made.after_step(BatchSums(len(rows.x_BD), sums, terms.fired_F, terms.observed))

    def learned(adam: torch.optim.Adam) -> LossOutput:
        terms = made.loss(rows.x_BD, len(rows.x_BD), rows.y_BO)
        terms.loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, project in made.projections().items():
                made.get_parameter(name).copy_(project(made.get_parameter(name)))
        return terms

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site-width", type=int, default=384)
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--batch-rows", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    # k-means and the factorisations start from as many rows as they have latents.
    x_BD = rows_of(max(args.batch_rows, 2 * args.width), args.site_width, torch.Generator().manual_seed(0))
    steps = {name: stepper(*make(name, x_BD, args.width, args.l0, args.batch_rows)) for name in ARCHITECTURES}
    learned = {name: step for name, step in steps.items() if ARCHITECTURES[name].Config.learns_by == "gradient"}
    take_turns(learned, SETTLING_STEPS)
    print(f"site {args.site_width}, width {args.width}, L0 {args.l0}, batch {args.batch_rows}")
    print_ratios(take_turns(steps, args.steps), "topk")


if __name__ == "__main__":
    main()
