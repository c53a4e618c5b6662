"""Decisions of early stopping for a running trial at its rungs, from the metrics in the sweep's folder.

Every trial keeps its metrics and decisions at each rung in `trials/TRIAL/rungs.json`. It writes its own metrics before
it reads those of the others, so of two that reach a rung together each sees the other. A decision is written before it
takes effect, so an attempt after a fault repeats it. Only the sweep's folder is needed: no process has to live as long
as the sweep.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict

from lexray.storage.documents import Count, Number, Plain, as_described
from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.polling import read_many
from lexray.storage.store import Store
from lexray.training.config import TrainingConfig
from lexray.training.dictionaries import architecture
from lexray.tuning.endings.early_stopping import (
    MIN_EVALUATIONS,
    Candidate,
    Measure,
    RungEntry,
    decide,
    measured,
    rung_steps,
)
from lexray.tuning.file.stop_block import StopRules
from lexray.tuning.folder_documents import Part, read_if_there
from lexray.tuning.sweep_folder import SweepFolder
from lexray.tuning.trials import Trial

log = logging.getLogger("lexray")

RUNGS = "rungs.json"
_ROWS = (
    "dataset_id", "inputs", "outputs", "batch_rows", "seed", "held_out", "held_out_of", "drop_special",
    "max_norm_ratio",
)  # fmt: skip
"""Fields of the data that must be equal for FVUs to be comparable."""


class MeasurePart(TypedDict):
    """A `Measure` in `rungs.json`."""

    l0: float
    fvu: float
    l0_noise: float
    fvu_noise: float


class DecisionPart(Part):
    """A decision in `rungs.json` that stops a trial."""

    rule: str
    rung: Count
    step: Count
    by: str
    l0: float
    fvu: float
    by_l0: float
    by_fvu: float


def _decisions(given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    as_described(dict[str, DecisionPart])({step: decision for step, decision in given.items() if "rule" in decision})
    return given


@dataclass(kw_only=True)
class Rungs:
    """Contents of `rungs.json`; its keys are steps as strings."""

    measures: Annotated[dict[str, dict[str, Number]], AfterValidator(as_described(dict[str, MeasurePart]))] = field(
        default_factory=dict
    )
    """Metrics (`Measure`) by step."""
    verdicts: Annotated[dict[str, dict[str, Plain]], AfterValidator(_decisions)] = field(default_factory=dict)
    """Decisions by step; one without `rule` lets the trial continue."""
    rules: dict[str, Plain] = field(default_factory=dict)
    """Rules of the decisions; decisions under other rules do not count."""


_RUNGS = TypeAdapter(Rungs)


def read_rungs(store: Store) -> Rungs:
    """Read the rungs of the trial in this folder; empty if it reached none or its file is corrupt."""
    try:
        return read_if_there(store, RUNGS, _RUNGS, file=f"{store.url}/{RUNGS}") or Rungs()
    except CorruptDataError as error:
        log.warning("%s; its rungs count as not reached", error)
        return Rungs()


@dataclass(frozen=True, kw_only=True)
class EarlyStopper:
    """Decides on one trial; called on its first worker after each evaluation."""

    folder: SweepFolder
    rules: StopRules
    me: Candidate
    others: tuple[Candidate, ...] | None
    """Other comparable trials of the sweep; None: those in the folder at the time of the decision."""
    rungs: tuple[int, ...]
    """Steps of its rungs."""

    def __call__(self, records: Sequence[dict[str, Any]]) -> str:
        """Return the reason to stop the trial here; empty to continue."""
        step = int(records[-1]["step"])
        if step not in self.rungs:
            return ""
        return reason_of_decision(self.decision_at(step, [r for r in records if "eval/fvu" in r]))

    def decision_at(self, step: int, evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the decision at the rung of `step`: the recorded one if there is one."""
        store, key, rules = self.folder.trial_store(self.me.trial), str(step), self.rules.model_dump()
        mine = read_rungs(store)
        if mine.rules != rules:
            mine.verdicts, mine.rules = {}, rules
        if key not in mine.verdicts:
            measure = measured(evaluations)
            mine.measures[key] = asdict(measure)
            self._write(store, mine)
            mine.verdicts[key] = self._decide(step, measure)
            self._write(store, mine)
        return mine.verdicts[key]

    def _decide(self, step: int, measure: Measure) -> dict[str, Any]:
        others = list(self._reached(str(step)))
        decision = decide(self.rules, RungEntry(candidate=self.me, measure=measure), others)
        record = {"step": step, "rung": self.rungs.index(step) + 1, "reached": len(others) + 1, **asdict(measure)}
        if decision is None:
            return record
        winner = next(o.measure for o in others if o.candidate.trial == decision.by)
        beaten_by = {"by_l0": winner.l0, "by_fvu": winner.fvu}
        return {**record, **asdict(decision), **beaten_by, "rules": self.rules.model_dump()}

    def _reached(self, key: str) -> Iterable[RungEntry]:
        """Yield the other trials with metrics at this step."""
        others = self.others if self.others is not None else candidates_in(self.folder, self.me)
        stores = [self.folder.trial_store(other.trial) for other in others]
        for other, rungs in zip(others, read_many(read_rungs, stores), strict=True):
            if key in rungs.measures:
                yield RungEntry(candidate=other, measure=Measure(**rungs.measures[key]))

    def _write(self, store: Store, rungs: Rungs) -> None:
        store.write(RUNGS, json.dumps(asdict(rungs), indent=1).encode())


def stopped_by(store: Store, rules: StopRules) -> dict[str, Any]:
    """Return the decision that stopped the trial in this folder; empty if there is none under these rules."""
    rungs = read_rungs(store)
    given = rungs.verdicts.values() if rungs.rules == rules.model_dump() else ()
    return next((decision for decision in given if "rule" in decision), {})


def reason_of_decision(decision: dict[str, Any]) -> str:
    """Format a decision as one line; empty for one that lets the trial continue."""
    if "rule" not in decision:
        return ""
    return (
        f"{decision['rule']}, rung {decision['rung']} (step {decision['step']:,}): FVU {decision['fvu']:.4f} "
        f"at L0 {decision['l0']:.2f}, {decision['by']} has {decision['by_fvu']:.4f} at {decision['by_l0']:.2f}"
    )


def early_stoppers(folder: SweepFolder, trials: Sequence[Trial], rules: StopRules) -> dict[str, EarlyStopper]:
    """Return the early stopper of each trial by its id."""
    candidates = {trial.id: candidate(trial) for trial in trials}
    return {
        trial.id: EarlyStopper(
            folder=folder,
            rules=rules,
            me=(me := candidates[trial.id]),
            others=tuple(o for o in candidates.values() if o.comparable == me.comparable and o.trial != me.trial),
            rungs=rungs_of(rules, trial),
        )
        for trial in trials
    }


def early_stopper_of(folder: SweepFolder, trial: Trial, rules: StopRules) -> EarlyStopper:
    """Return the early stopper of a trial in a sweep that proposes trials while it runs."""
    return EarlyStopper(folder=folder, rules=rules, me=candidate(trial), others=None, rungs=rungs_of(rules, trial))


def candidates_in(folder: SweepFolder, me: Candidate) -> tuple[Candidate, ...]:
    """Return the comparable trials with a record in the folder."""
    found = read_many(lambda trial: _recorded(folder, trial), folder.store.list_folders("trials"))
    return tuple(o for o in found if o is not None and o.comparable == me.comparable and o.trial != me.trial)


def _recorded(folder: SweepFolder, trial: str) -> Candidate | None:
    try:
        record = folder.read_trial(trial)
        if record is None:
            return None
        return _candidate(trial, TrainingConfig.from_dict(dict(record.config)).to_dict())  # of any version
    except (CorruptDataError, UserError, KeyError) as error:
        log.warning("%s/trials/%s is not judged by: %s", folder.store.url, trial, error)
        return None


def rungs_of(rules: StopRules, trial: Trial) -> tuple[int, ...]:
    """Return the steps of a trial's rungs."""
    return rung_steps(rules, trial.config.num_steps, trial.config.every.evaluate)


def check_rungs(rules: StopRules, trials: Sequence[Trial]) -> None:
    """Raise UserError if a trial is evaluated too rarely to have a rung."""
    for trial in trials:
        if not rungs_of(rules, trial):
            steps, evaluate = trial.config.num_steps, trial.config.every.evaluate
            enough = max(1, int(rules.first_share * steps) // MIN_EVALUATIONS)
            raise UserError(
                f"stop: {trial.name} is evaluated every {evaluate:,} of {steps:,} steps, too rarely for a rung with "
                f"{MIN_EVALUATIONS} evaluations before it; set every.evaluate to {enough:,} or less"
            )


def candidate(trial: Trial) -> Candidate:
    """Return a trial as the stopping rules see it."""
    return _candidate(trial.id, trial.config.to_dict())


def _candidate(trial: str, config: dict[str, Any]) -> Candidate:
    dictionary, data = config["dictionary"], config["data"]
    made = architecture(dictionary["architecture"])
    comparable = [dictionary["width"], config["rows"], *(data[name] for name in _ROWS)]
    del config["seed"], config["mesh"]
    return Candidate(
        trial=trial,
        configuration=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16],
        target_l0=float(dictionary["target_l0"]),
        comparable=json.dumps(comparable),
        family=made.codes[0].__name__ if made.works_at_other_k else "",
    )
