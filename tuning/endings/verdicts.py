"""The verdicts of a running trial at its rungs, taken from what the trials of its sweep have written.

Every trial keeps `trials/TRIAL/rungs.json`: what it measured at each rung and what was decided there. It writes its own
measure before it reads those of the others, so of two that reach a rung together each sees the other; and a verdict is
written before it is followed, so whoever trains the trial again after a fault decides the same without asking anew.
Nothing but the sweep's folder is needed for it: no process has to live as long as the sweep.
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

from lexray.storage.documents import OPEN, Count, Number, Plain, as_described, read_document
from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.polling import read_many
from lexray.storage.store import Store
from lexray.training.dictionaries import architecture
from lexray.tuning.endings.early_stopping import (
    MIN_EVALUATIONS,
    Contender,
    Measure,
    Reached,
    judge,
    measured,
    rung_steps,
)
from lexray.tuning.file.stop_block import StopRules
from lexray.tuning.sweep_folder import SweepFolder
from lexray.tuning.trials import Trial

log = logging.getLogger("lexray")

RUNGS = "rungs.json"
_ROWS = ("dataset_id", "inputs", "outputs", "batch_rows", "seed", "held_out", "drop_special", "max_norm_ratio")
"""What of the data has to be equal for FVUs to be compared."""


class MeasurePart(TypedDict):
    """A `Measure` in `rungs.json`."""

    l0: float
    fvu: float
    l0_noise: float
    fvu_noise: float


class VerdictPart(TypedDict):
    """A verdict in `rungs.json` that ends a trial."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    rule: str
    rung: Count
    step: Count
    by: str
    l0: float
    fvu: float
    by_l0: float
    by_fvu: float


def _verdicts(given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    as_described(dict[str, VerdictPart])({step: verdict for step, verdict in given.items() if "rule" in verdict})
    return given


@dataclass(kw_only=True)
class Rungs:
    """What `rungs.json` holds; steps are text there, as JSON has it."""

    measures: Annotated[dict[str, dict[str, Number]], AfterValidator(as_described(dict[str, MeasurePart]))] = field(
        default_factory=dict
    )
    """Step to `Measure`."""
    verdicts: Annotated[dict[str, dict[str, Plain]], AfterValidator(_verdicts)] = field(default_factory=dict)
    """Step to the record of a verdict; one without `rule` lets the trial go on."""
    rules: dict[str, Plain] = field(default_factory=dict)
    """Under which the verdicts were given: under others they do not count."""


_RUNGS = TypeAdapter(Rungs)


def read_rungs(store: Store) -> Rungs:
    """Those of the trial in this folder; empty when it reached none, or its file cannot be used."""
    try:
        return read_document(store, RUNGS, _RUNGS, file=f"{store.url}/{RUNGS}")
    except (FileNotFoundError, NotADirectoryError):
        return Rungs()
    except CorruptDataError as error:
        log.warning("%s; its rungs count as not reached", error)
        return Rungs()


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Judges one trial; called on the trial's first worker after each evaluation."""

    folder: SweepFolder
    rules: StopRules
    me: Contender
    others: tuple[Contender, ...] | None
    """The sweep's other trials that may be compared with it; None: those that the folder knows of when it judges."""
    rungs: tuple[int, ...]
    """Steps at which it is judged."""

    def __call__(self, records: Sequence[dict[str, Any]]) -> str:
        """Why the trial ends here, empty to go on."""
        step = int(records[-1]["step"])
        if step not in self.rungs:
            return ""
        return reason_of_verdict(self.verdict_at(step, [r for r in records if "eval/fvu" in r]))

    def verdict_at(self, step: int, evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The record of the verdict at the rung of `step`, the one that was given before if there is one."""
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
        verdict = judge(self.rules, Reached(contender=self.me, measure=measure), others)
        record = {"step": step, "rung": self.rungs.index(step) + 1, "reached": len(others) + 1, **asdict(measure)}
        if verdict is None:
            return record
        winner = next(o.measure for o in others if o.contender.trial == verdict.by)
        return {**record, **asdict(verdict), "by_l0": winner.l0, "by_fvu": winner.fvu, "rules": self.rules.model_dump()}

    def _reached(self, key: str) -> Iterable[Reached]:
        """The others that have measured at this step."""
        others = self.others if self.others is not None else contenders_in(self.folder, self.me)
        stores = [self.folder.trial_store(other.trial) for other in others]
        for other, rungs in zip(others, read_many(read_rungs, stores), strict=True):
            if key in rungs.measures:
                yield Reached(contender=other, measure=Measure(**rungs.measures[key]))

    def _write(self, store: Store, rungs: Rungs) -> None:
        store.write(RUNGS, json.dumps(asdict(rungs), indent=1).encode())


def stopped_by(store: Store, rules: StopRules) -> dict[str, Any]:
    """The record of the verdict that ended the trial in this folder; empty when there is none under these rules."""
    rungs = read_rungs(store)
    given = rungs.verdicts.values() if rungs.rules == rules.model_dump() else ()
    return next((verdict for verdict in given if "rule" in verdict), {})


def reason_of_verdict(verdict: dict[str, Any]) -> str:
    """A verdict in one line, empty for one that lets the trial go on."""
    if "rule" not in verdict:
        return ""
    return (
        f"{verdict['rule']}, rung {verdict['rung']} (step {verdict['step']:,}): FVU {verdict['fvu']:.4f} "
        f"at L0 {verdict['l0']:.2f}, {verdict['by']} has {verdict['by_fvu']:.4f} at {verdict['by_l0']:.2f}"
    )


def judges(folder: SweepFolder, trials: Sequence[Trial], rules: StopRules) -> dict[str, Judge]:
    """A judge for each trial, by its id."""
    contenders = {trial.id: contender(trial) for trial in trials}
    return {
        trial.id: Judge(
            folder=folder,
            rules=rules,
            me=(me := contenders[trial.id]),
            others=tuple(o for o in contenders.values() if o.comparable == me.comparable and o.trial != me.trial),
            rungs=rungs_of(rules, trial),
        )
        for trial in trials
    }


def judge_of_all(folder: SweepFolder, trial: Trial, rules: StopRules) -> Judge:
    """The judge of a trial in a sweep that chooses its trials while it runs."""
    return Judge(folder=folder, rules=rules, me=contender(trial), others=None, rungs=rungs_of(rules, trial))


def contenders_in(folder: SweepFolder, me: Contender) -> tuple[Contender, ...]:
    """The trials with a record in the folder that may be compared with this one."""
    found = read_many(lambda trial: _recorded(folder, trial), folder.store.list_folders("trials"))
    return tuple(o for o in found if o is not None and o.comparable == me.comparable and o.trial != me.trial)


def _recorded(folder: SweepFolder, trial: str) -> Contender | None:
    try:
        record = folder.read_trial(trial)
        return None if record is None else _contender(trial, dict(record.config))
    except (CorruptDataError, UserError, KeyError) as error:
        log.warning("%s/trials/%s is not judged by: %s", folder.store.url, trial, error)
        return None


def rungs_of(rules: StopRules, trial: Trial) -> tuple[int, ...]:
    """Steps at which a trial is judged."""
    return rung_steps(rules, trial.config.num_steps, trial.config.every.evaluate)


def check_rungs(rules: StopRules, trials: Sequence[Trial]) -> None:
    """Raise UserError when a trial is evaluated too rarely to be judged at all."""
    for trial in trials:
        if not rungs_of(rules, trial):
            steps, evaluate = trial.config.num_steps, trial.config.every.evaluate
            enough = max(1, int(rules.first_share * steps) // MIN_EVALUATIONS)
            raise UserError(
                f"stop: {trial.name} is evaluated every {evaluate:,} of {steps:,} steps, too rarely for a rung with "
                f"{MIN_EVALUATIONS} evaluations before it; set every.evaluate to {enough:,} or less"
            )


def contender(trial: Trial) -> Contender:
    """A trial as the rules see it."""
    return _contender(trial.id, trial.config.to_dict())


def _contender(trial: str, config: dict[str, Any]) -> Contender:
    dictionary, data = config["dictionary"], config["data"]
    made = architecture(dictionary["architecture"])
    comparable = [dictionary["width"], config["rows"], *(data[name] for name in _ROWS)]
    del config["seed"], config["mesh"]
    return Contender(
        trial=trial,
        configuration=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16],
        target_l0=float(dictionary["target_l0"]),
        comparable=json.dumps(comparable),
        family=made.codes[0].__name__ if made.works_at_other_k else "",
    )
