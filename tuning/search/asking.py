"""The search of a sweep that proposes points while it runs; its state is in the trials' records.

The sampler sees L0 and FVU of an ended trial on validation rows, and its width if that varies: a small dictionary that
only a wider one beats is worth having. A trial that was stopped early counts with its last metrics, since it was beaten
there; a failed one has no values. A trial that runs, or was interrupted and will resume, counts as running: the sampler
avoids its neighbourhood.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from lexray.storage.errors import UserError
from lexray.storage.polling import read_many
from lexray.tuning.file.axes import Point
from lexray.tuning.file.points import DRAWS_PER_TRIAL, corners, effective, is_excluded, key
from lexray.tuning.file.search import draws
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.records import new_record
from lexray.tuning.search.study import Axes, Known, fits, has_widths, proposals, seed_of, subspaces
from lexray.tuning.sweep_folder import FINISHED, PENDING, STOPPED, SweepFolder, TrialRecord
from lexray.tuning.trials import Trial

log = logging.getLogger("lexray")

PROPOSALS = 100
"""Maximum proposals of the sampler for a new valid point; afterwards points are drawn at random."""

Make = Callable[[Point], Trial]
"""Returns the trial at a point. Raises UserError for an invalid point."""


@dataclass(kw_only=True)
class Search:
    """The trials proposed so far, and the source of the next."""

    sweep: SweepFile
    folder: SweepFolder
    make: Make
    bounds: list[Trial]
    """Trials at the corners of the axes; they bound the resources of every trial."""
    included: list[Trial]
    """Further trials, given explicitly."""
    asked: list[Trial]
    """Proposed trials in order, those of earlier runs first."""
    stop_rules: dict[str, Any] | None
    """Stopping rules under which trials that were stopped early are not trained again."""
    fit: Callable[[Trial], Trial] | None = None
    """Chooses the mesh of a trial. Raises UserError if none fits."""
    _ended: dict[str, TrialRecord] = field(default_factory=dict)
    """Records by id of the trials that ended in this run or need no training."""
    _exhausted: list[Axes] = field(default_factory=list)
    _refusal: str = ""
    """Error of the last invalid point."""

    @property
    def num_left(self) -> int:
        """Number of trials left to propose."""
        if len(self._exhausted) == len(self._subspaces):
            return 0
        return max(0, (self.sweep.search.trials or 0) - len(self.asked))

    def __post_init__(self) -> None:
        self._subspaces = subspaces(self.sweep)

    def fitted(self, fit: Callable[[Trial], Trial]) -> Search:
        """Return the search with `fit` as choice of meshes. Raises UserError if a corner of the axes does not fit."""
        return replace(self, fit=fit, bounds=[fit(trial) for trial in self.bounds])

    def told(self, *trials: Trial) -> None:
        """Record that these trials ended, in whatever status."""
        records = read_many(self.folder.read_trial, [trial.id for trial in trials])
        for trial, record in zip(trials, records, strict=True):
            self._ended[trial.id] = record or new_record(trial, status=PENDING)

    def ask(self) -> Trial | None:
        """Return the next trial and write it as pending; None when there are enough, or no new point was found."""
        while self.num_left:
            trial = self._next()
            if trial is None:
                break
            self.asked.append(trial)
            record = self.folder.read_trial(trial.id)
            if record is None or not self.folder.is_finished(trial.id, self.stop_rules):
                self.folder.write_trial(new_record(trial, status=PENDING))
                return trial
            self.folder.write_trial(replace(record, point=trial.point, number=trial.number))
            self.told(trial)
        return None

    def _next(self) -> Trial | None:
        number = max((trial.number for trial in self.asked if trial.number is not None), default=-1) + 1
        left = [axes for axes in self._subspaces if axes not in self._exhausted]
        for axes in sorted(left, key=lambda axes: sum(fits(axes, trial.point) for trial in self.asked)):
            trial = self._first_new(self._points(axes, number))
            if trial is not None:
                return replace(trial, number=number)
            self._exhausted.append(axes)
        reason = f" (one that could not be: {self._refusal})" if self._refusal else ""
        wanted, found = self.sweep.search.trials, len(self.asked)
        log.warning("search.trials: %d, but only %d different dictionaries were found%s", wanted, found, reason)
        return None

    def _points(self, axes: Axes, number: int) -> Iterator[Point]:
        block, seed = self.sweep.search, seed_of(self.sweep.search.seed, number)
        known = [self._known(axes, trial) for trial in (*self.included, *self.asked) if fits(axes, trial.point)]
        asked = proposals(axes, known, sampler=block.sampler, seed=seed, num_values=3 if has_widths(axes) else 2)
        return chain(islice(asked, PROPOSALS), islice(draws(axes, seed), DRAWS_PER_TRIAL))

    def _known(self, axes: Axes, trial: Trial) -> Known:
        deciding = {axis: trial.point[axis] for axis in effective(self.sweep, trial.point) if axis in axes}
        number = -1 if trial.number is None else trial.number
        record = self._ended.get(trial.id)
        if record is None:
            return Known(number=number, point=deciding, running=True)
        return Known(number=number, point=deciding, values=values_of(record, with_width=has_widths(axes)))

    def _first_new(self, points: Iterator[Point]) -> Trial | None:
        """Return the trial at the first point that is valid, new and not excluded."""
        before = (*self.included, *self.asked)
        ids, names = {t.id for t in before}, {key(effective(self.sweep, t.point)) for t in before}
        for point in points:
            if is_excluded(self.sweep, point) or key(effective(self.sweep, point)) in names:
                continue
            try:
                trial = self.make(point)
                trial = trial if self.fit is None else self.fit(trial)
            except UserError as error:
                self._refusal = str(error)
                continue
            if trial.id not in ids:
                return trial
        return None


def values_of(record: TrialRecord, *, with_width: bool) -> tuple[float, ...] | None:
    """Return the values to minimize of an ended trial, on validation rows; None for one that failed."""
    result = (record.validation or record.result) if record.status in (*FINISHED, STOPPED) else {}
    found = [result.get(name) for name in ("l0", "fvu")]
    values = [math.nan if value is None else value for value in found]
    values += [float(record.config["dictionary"]["width"])] if with_width else []
    return tuple(values) if all(map(math.isfinite, values)) else None


def search_of(
    sweep: SweepFile,
    folder: SweepFolder,
    make: Make,
    included: Sequence[Trial],
    stop_rules: dict[str, Any] | None = None,
) -> Search:
    """Restore the search from the sweep's folder; every trial counts as running until `told`.

    Records of points that the axes no longer have, or of other settings, are ignored. Raises UserError if a trial at a
    corner of the axes is invalid.
    """
    bounds, spaces = [make(point) for point in corners(sweep)], subspaces(sweep)
    records = read_many(folder.read_trial, folder.store.list_folders("trials"))
    apart = {trial.id for trial in included}
    of_axes = [
        record
        for record in records
        if record is not None and record.trial not in apart and _is_searched(sweep, spaces, record.point)
    ]
    found = [_of_record(make, record) for record in of_axes]
    asked = sorted((trial for trial in found if trial is not None), key=_place)
    return Search(
        sweep=sweep,
        folder=folder,
        make=make,
        bounds=bounds,
        included=list(included),
        asked=asked[: sweep.search.trials],
        stop_rules=stop_rules,
    )


def _place(trial: Trial) -> tuple[int, str]:
    return (-1 if trial.number is None else trial.number, trial.id)


def _is_searched(sweep: SweepFile, spaces: Sequence[Axes], point: Point) -> bool:
    return any(fits(axes, point) for axes in spaces) and not is_excluded(sweep, point)


def _of_record(make: Make, record: TrialRecord) -> Trial | None:
    """Return the trial of a record; None if its point now gives another dictionary, or none."""
    try:
        trial = make(record.point)
    except UserError:
        return None
    return replace(trial, number=record.number) if trial.id == record.trial else None
