"""Every architecture, in one table. The docstring of the class is its equations; `paper` says where they come from."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from lexray.storage.config_file import checked_config, nearest
from lexray.storage.errors import UserError
from lexray.training.dictionaries.abs_topk import AbsTopK
from lexray.training.dictionaries.archetypal import Archetypal, RelaxedArchetypal
from lexray.training.dictionaries.base import Dictionary, DictionaryConfig
from lexray.training.dictionaries.batch_topk import BatchTopK
from lexray.training.dictionaries.crosscoder import Crosscoder, CrosscoderBatchTopK
from lexray.training.dictionaries.gated import Gated, GatedPAnneal
from lexray.training.dictionaries.group_max import GroupMax
from lexray.training.dictionaries.hierarchical_topk import HierarchicalTopK
from lexray.training.dictionaries.jumprelu import JumpReLU
from lexray.training.dictionaries.kmeans import KMeans
from lexray.training.dictionaries.matching_pursuit import MatchingPursuit
from lexray.training.dictionaries.matryoshka import MatryoshkaBatchTopK
from lexray.training.dictionaries.nmf import NMF, SNMF
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.dictionaries.p_anneal import PAnneal
from lexray.training.dictionaries.pca import PCA
from lexray.training.dictionaries.relu import ReLU, ReLUNormWeighted, ReLUTanh
from lexray.training.dictionaries.topk import TopK
from lexray.training.dictionaries.transcoder import SkipTranscoder, Transcoder

_ALL: tuple[type[Dictionary], ...] = (
    ReLU, ReLUNormWeighted, ReLUTanh, PAnneal, Gated, GatedPAnneal, JumpReLU,
    TopK, BatchTopK, AbsTopK, GroupMax, MatryoshkaBatchTopK, HierarchicalTopK,
    MatchingPursuit, Archetypal, RelaxedArchetypal,
    Transcoder, SkipTranscoder, Crosscoder, CrosscoderBatchTopK,
    PCA, KMeans, SNMF, NMF,
)  # fmt: skip

ARCHITECTURES: dict[str, type[Dictionary]] = {made.Config.architecture: made for made in _ALL}


def architecture(name: str) -> type[Dictionary]:
    """The class of an architecture. Raises UserError with the nearest known name."""
    if not isinstance(name, str):
        raise UserError(f"architecture: {name!r} is not a name; known: {', '.join(sorted(ARCHITECTURES))}")
    if name not in ARCHITECTURES:
        raise UserError(f"architecture: unknown {name!r}{nearest(name, list(ARCHITECTURES))}")
    return ARCHITECTURES[name]


def dictionary_config(options: dict[str, Any]) -> DictionaryConfig:
    """A checked configuration from plain values with an `architecture` among them."""
    options = dict(options)
    config_class = architecture(options.pop("architecture")).Config
    known = [f.name for f in fields(config_class)]
    for name in options:
        if name not in known:
            raise UserError(f"{name}: unknown option of {config_class.architecture}{nearest(name, known)}")
    return checked_config(config_class, options)


def make_dictionary(config: DictionaryConfig, sites: Sites, **kwargs: Any) -> Dictionary:
    """The untrained dictionary of a configuration. `kwargs`: seed, axes. Raises UserError for wrong sites."""
    return architecture(config.architecture).for_config(config)(config, sites, **kwargs)
