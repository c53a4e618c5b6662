"""What one training step costs: sparse products against dense ones, and lexray's engine against a bare loop.

All variants take turns step by step in one process on the same rows, so that a busy machine slows them alike; the
medians are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.turns import print_ratios, take_turns
from lexray.training.config import OptimizerConfig
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.engines.deepspeed_engine import DeepSpeedEngine
from lexray.training.loop.build import ensure_process_group
from lexray.training.mesh.settings import MeshConfig


def make(site_width: int, width: int, l0: int) -> Dictionary:
    statistics_of_site = SiteStatistics(mean=(0.0,) * site_width, mean_squared_norm=float(site_width))
    config = dictionary_config({"architecture": "topk", "width": width, "target_l0": l0})
    return make_dictionary(config, Sites.same(statistics_of_site))


def bare_step(dictionary: Dictionary, dense: bool) -> Callable[[torch.Tensor], None]:
    """A plain PyTorch step: lexray's loss, or the same one written with dense products."""
    adam = torch.optim.Adam(dictionary.parameters(), lr=1e-4, fused=True)

    def step(x_BD: torch.Tensor) -> None:
        loss = dense_loss(dictionary, x_BD) if dense else dictionary.loss(x_BD, len(x_BD)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dictionary.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)

    return step


def dense_loss(dictionary: Dictionary, x_BD: torch.Tensor) -> torch.Tensor:
    x_BD = dictionary.input.normalise(x_BD)
    z_BF = F.relu(F.linear(x_BD - dictionary.b_dec, dictionary.W_enc, dictionary.b_enc))
    values, indices = torch.topk(z_BF, int(dictionary.config.target_l0), dim=1)
    code_BF = torch.zeros_like(z_BF).scatter(1, indices, values)
    return (x_BD - code_BF @ dictionary.atoms_FD() - dictionary.b_dec).square().sum() / len(x_BD)


def engine_step(engine: DeepSpeedEngine, x_BD: torch.Tensor) -> None:
    engine.backward(RawRows(x_BD, x_BD), len(x_BD))
    engine.step(1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site-width", type=int, default=512)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--batch-rows", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ensure_process_group()
    engines = {
        stage: DeepSpeedEngine(
            make(args.site_width, args.width, args.l0), OptimizerConfig(), MeshConfig(zero_stage=stage)
        )
        for stage in (0, 1)
    }
    x_BD = torch.randn(args.batch_rows, args.site_width)
    dense, sparse = (bare_step(make(args.site_width, args.width, args.l0), dense=dense) for dense in (True, False))
    steps: dict[str, Callable[[], object]] = {
        "bare loop, dense products": lambda: dense(x_BD),
        "bare loop, sparse products": lambda: sparse(x_BD),
        "lexray, ZeRO 0": lambda: engine_step(engines[0], x_BD),
        "lexray, ZeRO 1": lambda: engine_step(engines[1], x_BD),
    }
    take_turns(steps, rounds=2)  # warm
    print(f"TopK, site {args.site_width}, width {args.width}, L0 {args.l0}, batch {args.batch_rows}")
    print_ratios(take_turns(steps, args.steps), "bare loop, sparse products")


if __name__ == "__main__":
    main()
