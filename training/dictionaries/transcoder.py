"""Transcoders: read one site, reconstruct another; with or without a linear path beside the latents.

Shapes: B rows, D width of the input site, O width of the output site, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lexray.storage.errors import UserError
from lexray.training.dictionaries.base import Dictionary, DictionaryConfig
from lexray.training.dictionaries.batch_topk import BatchTopK, BatchTopKConfig
from lexray.training.dictionaries.jumprelu import JumpReLU, JumpReLUConfig
from lexray.training.dictionaries.learned import LearnedDictionary
from lexray.training.dictionaries.mixing import with_codes
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.dictionaries.relu import ReLU
from lexray.training.dictionaries.topk import TopK


@dataclass(frozen=True, kw_only=True)
class TranscoderConfig(BatchTopKConfig, JumpReLUConfig):
    """Options of transcoders; those of other codes than the chosen one do nothing."""

    architecture = "transcoder"

    code: Literal["topk", "batch_topk", "relu", "jumprelu"] = "topk"
    """How latents become active."""
    encoder_init: Literal["tied", "random"] = "random"
    """Input and output are different spaces: only `random` is possible."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_init == "tied":
            raise UserError("encoder_init: a transcoder reads another site than it writes, so nothing can be tied")

    @property
    def keeps_k(self) -> bool:
        return self.code in ("topk", "batch_topk")


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
    config: TranscoderConfig

    @classmethod
    def for_config(cls, config: DictionaryConfig) -> type[Dictionary]:
        assert isinstance(config, TranscoderConfig)
        return _TRANSCODERS[config.code]

    @classmethod
    def check_sites(cls, config: DictionaryConfig, sites: Sites) -> None:
        if sites.reconstructs_its_input or len(sites.outputs) != 1:
            raise UserError(f"{config.architecture} reads one site and reconstructs another; only one site is given")
        super().check_sites(config, sites)

    def encoder_bias_F(self) -> Tensor:
        return self.b_enc


_TRANSCODERS = with_codes(Transcoder, TopK, BatchTopK, ReLU, JumpReLU)


@dataclass(frozen=True, kw_only=True)
class SkipTranscoderConfig(TranscoderConfig):
    """Options of skip transcoders."""

    architecture = "skip_transcoder"


class SkipTranscoder(Transcoder):
    """Transcoder with a linear skip connection, so that latents need not spend themselves on the linear part.

        f as in Transcoder
        y_hat = f atoms + b_dec + W_skip x

    W_skip (O x D) starts at zero.
    """

    Config = SkipTranscoderConfig
    paper = "Paulo, Shabalin and Belrose, Transcoders beat SAEs for interpretability (2025), arXiv:2501.18823"
    config: SkipTranscoderConfig

    @classmethod
    def for_config(cls, config: DictionaryConfig) -> type[Dictionary]:
        assert isinstance(config, SkipTranscoderConfig)
        return _SKIP_TRANSCODERS[config.code]

    def __init__(self, config: SkipTranscoderConfig, sites: Sites, **kwargs: Any) -> None:
        super().__init__(config, sites, **kwargs)
        self.W_skip = nn.Parameter(torch.zeros(sites.output_width, sites.input_width))

    def offset(self, x_BD: Tensor) -> Tensor:
        return self.b_dec + x_BD @ self.W_skip.T

    def _offset_of_raw(self, x_BD: Tensor | None) -> Tensor:
        if x_BD is None:
            raise ValueError("a skip transcoder reconstructs from the code and the raw input: decode(code, x)")
        return self.offset(self.input.normalise(x_BD))


_SKIP_TRANSCODERS = with_codes(SkipTranscoder, TopK, BatchTopK, ReLU, JumpReLU)
