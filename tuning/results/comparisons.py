"""Numbers of pairs of trials, each computed once however often results are written. Shapes: F atoms, O their width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lexray.storage.errors import CorruptDataError, UserError
from lexray.training.checkpoint.saved import TENSORS, load_dictionary
from lexray.training.measures.matching import initial_atoms
from lexray.tuning.sweep_folder import SweepFolder, TrialRecord

LOADED_BYTES = 4 * 2**30
"""Dictionaries of larger files are left out."""


@dataclass(frozen=True)
class Atoms:
    """The atoms of a trial, at the end and at the start of its training (F, O)."""

    final: Tensor
    initial: Tensor | None
    """None where they are made from data."""


@dataclass
class Comparisons:
    """Numbers of pairs of trials, each computed once; the atoms of a trial are read when first needed."""

    read: Callable[[str], Atoms]
    known: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Trials whose dictionaries cannot be read, and why."""
    used: dict[str, Any] = field(default_factory=dict)
    """The numbers that were asked for."""
    _atoms: dict[str, Atoms] = field(default_factory=dict)

    def of(self, name: str, trials: Sequence[str], compute: Callable[..., Any]) -> Any:
        """`compute` of the trials' atoms, or what is known of it; None when one of them cannot be read."""
        key = " ".join([name, *trials])
        if key not in self.known:
            atoms = [self._read(trial) for trial in trials]
            if None in atoms:
                return None
            self.known[key] = compute(*atoms)
        self.used[key] = self.known[key]
        return self.known[key]

    def forget_atoms(self) -> None:
        """Let go of what is in memory."""
        self._atoms.clear()

    def _read(self, trial: str) -> Atoms | None:
        if trial in self.failed:
            return None
        if trial not in self._atoms:
            try:
                self._atoms[trial] = self.read(trial)
            except (UserError, CorruptDataError, OSError) as error:
                self.failed[trial] = str(error)
                return None
        return self._atoms[trial]


def read_atoms(folder: SweepFolder, record: TrialRecord) -> Atoms:
    """Raises UserError when the dictionary is missing, damaged or too large."""
    store = folder.trial_store(record.trial).at_path("dictionary")
    file_bytes = store.size(TENSORS) or 0
    if file_bytes > LOADED_BYTES:
        raise UserError(f"{TENSORS} has {file_bytes:,} bytes; dictionaries above {LOADED_BYTES:,} are left out")
    dictionary = load_dictionary(store.url, store.settings)
    final: Tensor = dictionary.atoms_FD()  # type: ignore[operator]
    return Atoms(final, initial_atoms(dictionary, record.config.get("seed", 0)))
