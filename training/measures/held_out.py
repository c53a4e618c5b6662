"""Measures of a saved dictionary on the test rows of its dataset, and where they are written."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Annotated, Any, NotRequired

import numpy as np
import torch
from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from lexray.storage.documents import OPEN, Count, Number, as_described, read_document
from lexray.storage.errors import CorruptDataError, named_line
from lexray.storage.json_values import with_nulls
from lexray.storage.reader import open_dataset
from lexray.storage.store import Store
from lexray.storage.stream import BatchStream
from lexray.storage.windows import StreamSpec, WindowSource
from lexray.training.checkpoint.saved import load_dictionary
from lexray.training.config import DataConfig
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.engines.batches import raw_rows
from lexray.training.measures.coherence import COMPARE_FLOP
from lexray.training.measures.documents import document_section
from lexray.training.measures.measure import MEASURES_VERSION, Measures, measure

MEASURES_FILE, FIRED_FILE = "measures.json", "fired.npy"

MEASURED_ROWS = 65_536
"""Test rows that are measured at most."""

OpenStream = Callable[[StreamSpec], WindowSource]
"""Opens the windows of a stream."""

Share = Annotated[float, Field(ge=0, le=1)]

log = logging.getLogger("lexray")


def measure_held_out(
    dictionary: Dictionary,
    stream: BatchStream,
    data: DataConfig,
    *,
    max_rows: int = MEASURED_ROWS,
    device: torch.device | str = "cpu",
    max_flop: float | None = COMPARE_FLOP,
) -> Measures:
    """Measure a dictionary on a stream of test rows, all of which this process reads."""
    row_ids: list[np.ndarray] = []

    def batches() -> Iterator[RawRows]:
        row_ids.clear()
        for batch in stream.every_row(max_rows):
            row_ids.append(batch.row_ids)
            yield raw_rows(batch, data, device)

    found = measure(dictionary.to(device), batches, max_flop=max_flop)
    reader = open_dataset(stream.spec.store, stream.manifest)
    documents = document_section(found.squares, reader.column_at("document", np.concatenate(row_ids)))
    about = {"part": stream.spec.selection.part, "documents": with_nulls(documents)}
    return found._replace(document={**found.document, **about})


class FiringPart(TypedDict):
    """The section `firing` of `measures.json`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    dense_above: Share
    dense_fraction: Share
    dead_fraction: Share
    log10_edges: list[Annotated[float, Field(ge=-300, le=0)]]
    histogram: list[Count]


class LikenessPart(TypedDict, total=False):
    """The section `likeness`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    cosine: Number


class CurvePoint(TypedDict):
    """A point of the section `curve`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    k: Number
    l0: Number
    fvu: Number


class CurvePart(TypedDict):
    """The section `curve`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    method: str
    points: list[CurvePoint]


def _fvu(text: str) -> str:
    if not 0 < float(text) <= 1:
        raise ValueError("is no FVU in 0..1")
    return text


class DescriptionLengthPart(TypedDict):
    """The section `description_length`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    bits_at_fvu: dict[Annotated[str, AfterValidator(_fvu)], Number]


class CoherencePart(TypedDict, total=False):
    """The section `coherence`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    max_cosine: Number
    mean_max_cosine: Number
    babel: Number
    duplicate_fraction: Number


class DocumentsPart(TypedDict, total=False):
    """The section `documents`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    count: Count
    hash: str
    fvu_error: Number
    fvu_resamples: Annotated[list[Number], Field(max_length=10_000)]


class LatentScalingPart(TypedDict, total=False):
    """The section `latent_scaling`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    specific_fraction: Number
    artefact_fraction: Number


class MeasuresPart(TypedDict):
    """Sections of `measures.json` that are read again."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    firing: FiringPart
    likeness: NotRequired[LikenessPart]
    curve: NotRequired[CurvePart]
    description_length: NotRequired[DescriptionLengthPart]
    coherence: NotRequired[CoherencePart]
    documents: NotRequired[DocumentsPart]
    latent_scaling: NotRequired[LatentScalingPart]


def _of_this_version(document: dict[str, Any]) -> dict[str, Any] | None:
    if document.get("version") != MEASURES_VERSION or "error" in document:
        return None
    firing = as_described(MeasuresPart)(document)["firing"]
    edges, bins = firing["log10_edges"], firing["histogram"]
    if len(edges) != len(bins) + 1 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"firing: {len(bins)} bins between {len(edges)} edges, or edges that do not rise")
    return document


_MEASURES: TypeAdapter[dict[str, Any] | None] = TypeAdapter(Annotated[dict[str, Any], AfterValidator(_of_this_version)])


def write_measures(store: Store, measures: Measures) -> None:
    """Write `measures.json` and `fired.npy` (rows in which each latent fired, int64) into a trial's folder."""
    counts = io.BytesIO()
    np.save(counts, measures.fired_F.numpy())
    store.write(FIRED_FILE, counts.getvalue())
    store.write(MEASURES_FILE, json.dumps(measures.document, indent=1, allow_nan=False).encode())


def read_measures(store: Store) -> dict[str, Any] | None:
    """The document in a trial's folder, None where there is none of this version or measuring failed."""
    try:
        return read_document(store, MEASURES_FILE, _MEASURES, file=f"{store.url}/{MEASURES_FILE}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except CorruptDataError as error:
        log.warning("%s; the report goes on without it", error)
        return None


def measure_trial(store: Store, open_stream: OpenStream, data: DataConfig, device: torch.device | str = "cpu") -> None:
    """Measure the dictionary in a trial's folder. A failure is a warning and stands in `measures.json`: the trial is
    no worse for it, and `lexray measure` can do it again."""
    folder = store.at_path("dictionary")
    try:
        dictionary = load_dictionary(folder.url, folder.settings)
        spec = data.stream_spec("test")
        stream = BatchStream(spec=spec, source=open_stream(spec), batch_rows=data.batch_rows)
        write_measures(store, measure_held_out(dictionary, stream, data, device=device))
    except Exception as error:
        reason = named_line(error)
        log.warning("%s: not measured (%s)", store.url, reason)
        failed = {"format": "lexray-measures", "version": MEASURES_VERSION, "error": reason}
        store.write(MEASURES_FILE, json.dumps(failed, indent=1).encode())
