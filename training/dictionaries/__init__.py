"""Every architecture, in one table. The docstring of the class is its equations; `paper` says where they come from."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from storage.config_file import checked_config, nearest
from storage.errors import UserError
from training.dictionaries.abs_topk import AbsTopK
from training.dictionaries.archetypal import Archetypal, RelaxedArchetypal
from training.dictionaries.base import Dictionary, DictionaryConfig
from training.dictionaries.batch_topk import BatchTopK
from training.dictionaries.crosscoder import Crosscoder, CrosscoderBatchTopK
from training.dictionaries.gated import Gated, GatedPAnneal
from training.dictionaries.group_max import GroupMax
from training.dictionaries.hierarchical_topk import HierarchicalTopK
from training.dictionaries.jumprelu import JumpReLU
from training.dictionaries.kmeans import KMeans
from training.dictionaries.matching_pursuit import MatchingPursuit
from training.dictionaries.matryoshka import MatryoshkaBatchTopK
from training.dictionaries.nmf import NMF, SNMF
from training.dictionaries.p_anneal import PAnneal
from training.dictionaries.pca import PCA
from training.dictionaries.relu import ReLU, ReLUNormWeighted, ReLUTanh
from training.dictionaries.topk import TopK
from training.dictionaries.transcoder import SkipTranscoder, Transcoder
from training.normalisers import Sites

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
