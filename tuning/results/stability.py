"""Measures the stability of a sweep's dictionaries across seeds and widths, and the width chosen by it.

`stability.json` in the sweep's folder keeps every number of trials that still exist, so that an update reads only new
dictionaries. It holds

    seeds    for trials that differ in nothing but the seed: `stability`, the mean over pairs of the mean cosine of
             matched atoms, beside the same `at_start` (two dictionaries that start alike prove little by ending alike),
             the `floor` of random directions of that shape, how far atoms `moved` from where they began, and
             `score` = (stability - floor) / (1 - floor). Latents that fired on no test row are left out of all of them:
             `dead` is their number in each trial, null where it was not measured. Cosines are absolute values where
             codes have signs (`signed_codes`)
    widths   for trials that differ in nothing but the width: the share of the smaller dictionary's atoms `found` in the
             next larger one, and the `floor` of random directions
    chosen   where seeds and widths both vary: the widest dictionary whose score is within `TOLERANCE` of the best
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from lexray.storage.documents import read_document
from lexray.storage.errors import CorruptDataError
from lexray.storage.store import Store
from lexray.training.measures.held_out import FIRED_FILE
from lexray.training.measures.matching import (
    FOUND_ABOVE,
    found_share,
    moved,
    pair_stability,
    random_found_share,
    random_stability,
)
from lexray.tuning.folder_documents import STABILITY
from lexray.tuning.results.comparisons import Atoms, Comparisons, read_atoms
from lexray.tuning.sweep_folder import FINISHED, SweepFolder, TrialRecord

STABILITY_FILE = "stability.json"
FORMAT, VERSION = "lexray-stability", 2

TOLERANCE = 0.05
"""Score difference within which a wider dictionary is preferred."""

SEEDS = 6
"""Maximum number of seeds compared in a group, the first ones: 15 pairs."""


def write_stability(folder: SweepFolder, records: Sequence[TrialRecord]) -> dict[str, Any] | None:
    """Write `stability.json` of a sweep's finished trials; None, without writing, if none are comparable."""
    finished = {r.trial: r for r in records if r.status in FINISHED and "dictionary" in r.config}
    known = _still_known((read_stability(folder.store) or {}).get("numbers", {}), folder, finished)
    comparisons = Comparisons(lambda trial: read_atoms(folder, finished[trial]), known)
    found = stability(list(finished.values()), comparisons)
    if not found["seeds"] and not found["widths"] and not comparisons.failed:
        return None
    document = {
        "format": FORMAT,
        "version": VERSION,
        **found,
        "failed": comparisons.failed,
        "numbers": comparisons.used,
    }
    folder.store.write(STABILITY_FILE, json.dumps(document, indent=1, allow_nan=False).encode())
    return document


def _still_known(numbers: Mapping[str, Any], folder: SweepFolder, trials: Iterable[str]) -> dict[str, Any]:
    """Leave out numbers of trials that were measured since: which of their latents are dead was unknown."""
    unknown = [trial for trial in trials if numbers.get(f"dead {trial}", 0) is None]
    measured = {trial for trial in unknown if folder.trial_store(trial).exists(FIRED_FILE)}
    return {name: value for name, value in numbers.items() if not measured & set(name.split(" ")[1:])}


def read_stability(store: Store) -> dict[str, Any] | None:
    """Read the document in a sweep's folder; None if there is no readable one of this version."""
    try:
        document = read_document(store, STABILITY_FILE, STABILITY)
    except (FileNotFoundError, CorruptDataError):
        return None
    return document if document["version"] == VERSION else None


def stability(records: Sequence[TrialRecord], comparisons: Comparisons) -> dict[str, Any]:
    """Return `seeds`, `widths` and `chosen` of finished trials, see the top of this file."""
    seeds = [_of_seeds(group, comparisons) for group in _groups(records, "seed") if len(group) > 1]
    agreeing = [found for found in seeds if found is not None]
    widths = [found for group in _groups(records, "width") for found in _of_widths(group, comparisons)]
    by_trial = {record.trial: record for record in records}
    return {
        "found_above": FOUND_ABOVE,
        "seeds": agreeing,
        "widths": widths,
        "chosen": list(_choices(agreeing, by_trial)),
    }


def choose_width(scores: Mapping[int, float]) -> int:
    """Return the widest width whose score is within `TOLERANCE` of the best."""
    best = max(scores.values())
    return max(width for width, score in scores.items() if score >= best - TOLERANCE)


def _groups(records: Sequence[TrialRecord], *free: str) -> list[list[TrialRecord]]:
    """Group trials whose configurations differ in the `free` settings only, in the order of these."""
    groups: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in records:
        groups[configuration_key(record, free)].append(record)
    return [sorted(group, key=lambda r: (_width(r), _seed(r))) for group in groups.values()]


def configuration_key(record: TrialRecord, free: Sequence[str]) -> str:
    """Return a text that is the same for trials whose configurations differ in the `free` settings only."""
    config = {name: part for name, part in record.config.items() if name not in ("mesh", "every", *free)}
    config["dictionary"] = {name: part for name, part in config.get("dictionary", {}).items() if name not in free}
    return json.dumps(config, sort_keys=True)


def _of_seeds(group: list[TrialRecord], comparisons: Comparisons) -> dict[str, Any] | None:
    """Compare the seeds of one configuration; None when too few are readable."""
    trials = [record.trial for record in group][:SEEDS]
    pairs = list(combinations(trials, 2))
    ends = [comparisons.of("end", pair, _at_end) for pair in pairs]
    starts = [comparisons.of("start", pair, _at_start) for pair in pairs]
    distances = [comparisons.of("moved", [trial], _moved) for trial in trials]
    sizes = [size for trial in trials if (size := _size(trial, comparisons)) is not None]
    dead = [comparisons.of("dead", [trial], lambda a: a.dead) for trial in trials]
    comparisons.forget_atoms()
    cosines = [end[0] for end in ends if end is not None]
    if not cosines:
        return None
    atoms, signed = round(sum(size.atoms for size in sizes) / len(sizes)), sizes[0].signed_codes
    floor = comparisons.of(
        f"floor {atoms}x{sizes[0].dimensions} {signed:d}",
        [],
        lambda: random_stability(atoms, sizes[0].dimensions, signed_codes=signed),
    )
    average = sum(cosines) / len(cosines)
    return {
        "trials": trials,
        **_about(group[0]),
        "method": next(end[1] for end in ends if end is not None),
        "stability": average,
        "lowest": min(cosines),
        "at_start": _mean(starts),
        "moved": _mean(distances),
        "floor": floor,
        "score": (average - floor) / max(1e-12, 1 - floor),
        "dead": dead,
        "signed_codes": signed,
    }


def _of_widths(group: list[TrialRecord], comparisons: Comparisons) -> Iterator[dict[str, Any]]:
    """Yield the share of each dictionary that is found in the next wider one."""
    for smaller, larger in pairwise(group):
        pair = [smaller.trial, larger.trial]
        found = comparisons.of("found", pair, _found)
        narrow, wide = (_size(trial, comparisons) for trial in pair)
        if found is None or narrow is None or wide is None:
            continue
        sizes, signed = (narrow.atoms, wide.atoms, narrow.dimensions), narrow.signed_codes
        floor = comparisons.of(
            f"found-floor {sizes} {signed:d}",
            [],
            lambda sizes=sizes, signed=signed: random_found_share(*sizes, signed_codes=signed),
        )
        yield {
            "smaller": smaller.trial,
            "larger": larger.trial,
            **_about(smaller),
            "larger_width": _width(larger),
            "found": found,
            "floor": floor,
        }
    comparisons.forget_atoms()


def _choices(seeds: list[dict[str, Any]], records: Mapping[str, TrialRecord]) -> Iterator[dict[str, Any]]:
    """Yield the width chosen by stability, where several were trained with several seeds."""
    alike: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for found in seeds:
        alike[configuration_key(records[found["trials"][0]], ("seed", "width"))].append(found)
    for group in alike.values():
        if len(group) > 1:
            scores = {found["width"]: found["score"] for found in group}
            chosen = next(found for found in group if found["width"] == choose_width(scores))
            yield {name: chosen[name] for name in ("architecture", "target_l0", "width", "score", "trials")} | {
                "scores": {str(width): score for width, score in sorted(scores.items())}
            }


class _Size(NamedTuple):
    """The atoms of a trial that are compared."""

    atoms: int
    dimensions: int
    signed_codes: bool


def _size(trial: str, comparisons: Comparisons) -> _Size | None:
    """Return the size of a trial's atoms; None where they cannot be read."""
    found = comparisons.of("size", [trial], lambda a: [*a.final.shape, int(a.signed_codes)])
    return None if found is None else _Size(found[0], found[1], bool(found[2]))


def _at_end(a: Atoms, b: Atoms) -> list[float | str]:
    return list(pair_stability(a.final, b.final, signed_codes=a.signed_codes))


def _at_start(a: Atoms, b: Atoms) -> float | None:
    if a.initial is None or b.initial is None:
        return None
    return pair_stability(a.initial, b.initial, signed_codes=a.signed_codes).cosine


def _moved(a: Atoms) -> float | None:
    return None if a.initial is None else moved(a.final, a.initial, signed_codes=a.signed_codes)


def _found(a: Atoms, b: Atoms) -> float:
    return found_share(a.final, b.final, signed_codes=a.signed_codes)


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None unless all values are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _about(record: TrialRecord) -> dict[str, Any]:
    dictionary = record.config["dictionary"]
    return {name: dictionary[name] for name in ("architecture", "width", "target_l0")}


def _seed(record: TrialRecord) -> int:
    return int(record.config.get("seed", 0))


def _width(record: TrialRecord) -> int:
    return int(record.config.get("dictionary", {}).get("width", 0))
