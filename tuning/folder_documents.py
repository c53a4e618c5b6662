"""Schemas of the documents in a sweep's folder, which may be untrusted or damaged.

Each schema names only what lexray reads of a document: further fields are ignored, so that a folder of a later version
is readable. Errors name files relative to the sweep's folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NotRequired, Required, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from lexray.storage.documents import MAX_BYTES, OPEN, Count, Finite, Number, Plain, as_described, read_document
from lexray.storage.store import Store

PLAN_BYTES = 64 * 2**20
T = TypeVar("T")

Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Seconds = Annotated[float, Field(ge=0, le=1e15)]


def read_if_there(
    store: Store, path: str, kind: TypeAdapter[T], *, file: str = "", remedy: str = "", max_bytes: int = MAX_BYTES
) -> T | None:
    """Read the document at `path`, named `file` in messages; None if there is none. Raises CorruptDataError."""
    try:
        return read_document(store, path, kind, file=file, remedy=remedy, max_bytes=max_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return None


class Part(TypedDict):
    """A document, or a part of one, that may have further fields."""

    __pydantic_config__ = OPEN  # type: ignore[misc]


def document_of(kind: Any, change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> TypeAdapter[dict[str, Any]]:
    """Return the schema of an object that is of `kind`, with all its fields, after `change`."""
    return TypeAdapter(Annotated[dict[str, Any], AfterValidator(as_described(kind)), AfterValidator(change)])


class DictionaryPart(Part, total=False):
    """The `dictionary` of a trial's configuration."""

    architecture: Required[str]
    width: Required[Count]
    target_l0: Required[Finite]


class DataPart(Part, total=False):
    """The `data` of a trial's configuration."""

    url: str
    dataset_id: str
    inputs: list[str]
    outputs: list[str]
    batch_rows: Count


class ConfigPart(Part, total=False):
    """The `config` of a trial's record; empty if unknown."""

    dictionary: DictionaryPart
    data: DataPart
    rows: Count
    seed: Whole


Config = Annotated[dict[str, Any], AfterValidator(as_described(ConfigPart))]


class CurvePoint(Part):
    """Metrics at another number of active latents."""

    k: Finite


Curve = Annotated[list[dict[str, Number]], AfterValidator(as_described(list[CurvePoint]))]


class PlannedMemory(Part, total=False):
    """The `memory` of a trial in `plan.json`."""

    resident: Finite


class PlannedTrial(Part, total=False):
    """A trial in `plan.json`."""

    id: Required[str]
    name: str
    steps: Count
    reused: bool
    seconds: Seconds | None
    memory: PlannedMemory


class PlannedSpeed(TypedDict):
    """Measured speed of a kind of trial, in `plan.json`."""

    rows_per_s: Annotated[float, Field(gt=0, le=1e15)]
    evaluated_rows_per_s: NotRequired[Annotated[float, Field(gt=0, le=1e15)] | None]
    overhead_s: NotRequired[Seconds | None]
    source: str


class PlanDocument(Part, total=False):
    """`plan.json`."""

    trials: list[PlannedTrial]
    store_bytes: Finite
    speeds: dict[str, PlannedSpeed]


PLAN = document_of(PlanDocument)


class DatasetSite(Part):
    """A site in `dataset.json`."""

    width: Count
    dtype: str
    source: str


class DatasetDocument(Part):
    """`dataset.json`."""

    rows: Count
    sites: dict[str, DatasetSite]
    provenance: dict[str, Any]


DATASET = document_of(DatasetDocument)


class AboutTrials(Part):
    """Fields of every entry of `stability.json` that identify its trials."""

    architecture: str
    width: Count
    target_l0: Finite


class StableSeeds(AboutTrials):
    """An entry of its `seeds`."""

    trials: list[str]
    stability: Number
    at_start: Number
    floor: Number
    score: Number
    dead: list[Number]


class FoundWidths(AboutTrials):
    """An entry of its `widths`."""

    larger_width: Count
    found: Finite
    floor: Finite


class ChosenWidth(Part):
    """An entry of its `chosen`."""

    trials: list[str]


SHAPE_LIMIT = 2**28
"""Maximum size of a dictionary whose recorded size is trusted; a larger one is read from the dictionary."""


def _numbers(given: dict[str, Any]) -> dict[str, Any]:
    """Keep the `numbers` of `stability.json` that are valid for their names."""
    return {name: value for name, value in given.items() if _NUMBERS.get(name.split(" ", 1)[0], _is_number)(value)}


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15)


def _is_match(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_number(value[0]) and isinstance(value[1], str)


def _is_size(value: Any) -> bool:
    whole = isinstance(value, list) and len(value) == 3 and all(type(size) is int and size >= 0 for size in value)
    return whole and value[0] * value[1] <= SHAPE_LIMIT and value[2] <= 1


_NUMBERS: dict[str, Callable[[Any], bool]] = {"end": _is_match, "size": _is_size}


class StabilityDocument(Part, total=False):
    """`stability.json`."""

    version: Required[Plain]
    seeds: list[StableSeeds]
    widths: list[FoundWidths]
    chosen: list[ChosenWidth]
    numbers: dict[str, Any]


def _stability(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "numbers": _numbers(document.get("numbers", {}))}


STABILITY = document_of(StabilityDocument, _stability)


class SpentDocument(TypedDict):
    """`spent.json`."""

    cpu_s: Seconds
    gpu_s: Seconds


SPENT: TypeAdapter[SpentDocument] = TypeAdapter(SpentDocument)


class EndingDocument(TypedDict):
    """`ending.json`."""

    status: str


ENDING: TypeAdapter[EndingDocument] = TypeAdapter(EndingDocument)
