"""Every architecture, in one table: which dictionary, with which code. The docstring of the class is its equations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lexray.storage.config_file import nearest
from lexray.storage.errors import UserError
from lexray.training.codes import (
    CODES,
    AbsTopK,
    BatchTopK,
    Gated,
    GatedPAnneal,
    GroupMax,
    HierarchicalTopK,
    JumpReLU,
    MatchingPursuit,
    MatryoshkaBatchTopK,
    OrthogonalPursuit,
    PAnneal,
    ReLU,
    ReLUTanh,
    TopK,
)  # fmt: skip
from lexray.training.codes.base import Code
from lexray.training.dictionaries.archetypal import Archetypal, RelaxedArchetypal
from lexray.training.dictionaries.architecture import Architecture
from lexray.training.dictionaries.base import Dictionary, DictionaryConfig
from lexray.training.dictionaries.crosscoder import Crosscoder, CrosscoderBatchTopK
from lexray.training.dictionaries.kmeans import KMeans
from lexray.training.dictionaries.nmf import NMF, SNMF
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.dictionaries.pca import PCA
from lexray.training.dictionaries.plugins import load_plugins
from lexray.training.dictionaries.sae import SAE, FreeNormSAE, NormWeightedSAE, PursuitSAE
from lexray.training.dictionaries.transcoder import SkipTranscoder, Transcoder
from lexray.training.identity.versions import NEWEST

ARCHITECTURES: dict[str, Architecture] = {}


def register(name: str, dictionary: type[Dictionary], *codes: type[Code]) -> None:
    """Add an architecture: a dictionary with a code, or with several to choose from, the default first.

    Raises UserError when the name, or the kind of a code, is taken by something else.
    """
    if name in ARCHITECTURES:
        raise UserError(f"architecture: {name!r} is there already; choose another name")
    for code in codes:
        if CODES.setdefault(code.kind, code) is not code:
            raise UserError(f"architecture {name}: there is another code of kind {code.kind!r}; choose another kind")
    ARCHITECTURES[name] = Architecture(name, dictionary, codes)


def architecture(name: str) -> Architecture:
    """Return the architecture of a name. Raises UserError with the nearest known name."""
    if not isinstance(name, str):
        raise UserError(f"architecture: {name!r} is not a name; known: {', '.join(sorted(ARCHITECTURES))}")
    if name not in ARCHITECTURES:
        raise UserError(f"architecture: unknown {name!r}{nearest(name, list(ARCHITECTURES))}")
    return ARCHITECTURES[name]


def dictionary_config(options: Mapping[str, Any], defaults: int = NEWEST) -> DictionaryConfig:
    """Return a checked configuration from plain values with an `architecture` among them. Raises UserError.

    Options that are not given have the defaults of version `defaults`.
    """
    return architecture(options["architecture"]).config(options, defaults)


def recorded_config(options: Mapping[str, Any]) -> DictionaryConfig:
    """The same of what lexray wrote itself, maybe an earlier version of it. Raises UserError."""
    return architecture(options["architecture"]).recorded_config(options)


def make_dictionary(config: DictionaryConfig, sites: Sites, **kwargs: Any) -> Dictionary:
    """Return the untrained dictionary of a configuration. `kwargs`: seed, axes. Raises UserError for wrong sites."""
    return architecture(config.architecture).dictionary(config, sites, **kwargs)


register("relu", SAE, ReLU)
register("relu_norm_weighted", NormWeightedSAE, ReLU)
register("relu_tanh", FreeNormSAE, ReLUTanh)
register("p_anneal", SAE, PAnneal)
register("gated", SAE, Gated)
register("gated_p_anneal", SAE, GatedPAnneal)
register("jumprelu", SAE, JumpReLU)
register("topk", SAE, TopK)
register("batch_topk", SAE, BatchTopK)
register("abs_topk", SAE, AbsTopK)
register("group_max", SAE, GroupMax)
register("matryoshka_batch_topk", SAE, MatryoshkaBatchTopK)
register("hierarchical_topk", SAE, HierarchicalTopK)
register("mp", PursuitSAE, MatchingPursuit)
register("omp", SAE, OrthogonalPursuit)
register("archetypal", Archetypal, TopK, BatchTopK, JumpReLU)
register("relaxed_archetypal", RelaxedArchetypal, TopK, BatchTopK, JumpReLU)
register("transcoder", Transcoder, TopK, BatchTopK, ReLU, JumpReLU)
register("skip_transcoder", SkipTranscoder, TopK, BatchTopK, ReLU, JumpReLU)
register("crosscoder", Crosscoder, ReLU)
register("crosscoder_batch_topk", CrosscoderBatchTopK, BatchTopK)
register("pca", PCA)
register("kmeans", KMeans)
register("snmf", SNMF)
register("nmf", NMF)
load_plugins()
