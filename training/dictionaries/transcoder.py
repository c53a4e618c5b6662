"""Transcoders: read one site, reconstruct another; with or without a linear path around the latents.

Shapes: B rows, D width of the input site, O width of the output site, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lexray.storage.errors import UserError
from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.dictionaries.learned import LearnedConfig, LearnedDictionary
from lexray.training.dictionaries.normalisers import Sites


@dataclass(frozen=True, kw_only=True)
class TranscoderConfig(LearnedConfig):
    """Options of transcoders."""

    encoder_init: Literal["tied", "random"] = "random"
    """Input and output are different spaces: only `random` is possible."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_init == "tied":
            raise UserError("encoder_init: a transcoder reads another site than it writes, so nothing can be tied")


class Transcoder(LearnedDictionary):
    """Transcoder: latents that read a site and write another one, as those of a wide sparse MLP.

        z = W_enc x + b_enc
        f = code(z):  topk | batch_topk | relu | jumprelu, with the sparsity terms of that architecture
        y_hat = f atoms + b_dec
        loss = mean over rows of ||y - y_hat||^2 + the code's terms

    x is the normalised input site, y the normalised output site; their widths may differ. b_dec belongs to the output
    and is not subtracted from the input (the paper subtracts a bias of the input; b_enc absorbs it).
    """

    Config = TranscoderConfig
    paper = "Dunefsky, Chlenski and Nanda, Transcoders find interpretable LLM feature circuits (2024), arXiv:2406.11944"
    kind = "transcoder"
    centres_input = False

    @classmethod
    def check_sites(cls, config: DictionaryConfig, sites: Sites) -> None:
        if sites.reconstructs_its_input or len(sites.outputs) != 1:
            raise UserError(f"{config.architecture} reads one site and reconstructs another; only one site is given")
        super().check_sites(config, sites)


class SkipTranscoder(Transcoder):
    """Transcoder with a linear skip connection, so that latents need not spend themselves on the linear part.

        f as in Transcoder
        y_hat = f atoms + b_dec + W_skip x

    W_skip (O x D) starts at zero.
    """

    paper = "Paulo, Shabalin and Belrose, Transcoders beat SAEs for interpretability (2025), arXiv:2501.18823"

    def __init__(self, config: TranscoderConfig, sites: Sites, **kwargs: Any) -> None:
        super().__init__(config, sites, **kwargs)
        self.W_skip = nn.Parameter(torch.zeros(sites.output_width, sites.input_width))

    def offset(self, x_BD: Tensor) -> Tensor:
        return self.b_dec + x_BD @ self.W_skip.T

    def _offset_of_raw(self, x_BD: Tensor | None) -> Tensor:
        if x_BD is None:
            raise ValueError("a skip transcoder reconstructs from the code and the raw input: decode(code, x)")
        return self.offset(self.input.normalise(x_BD))
