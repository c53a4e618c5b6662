"""Numbers of pairs of trials, each computed once however often results are written.

Shapes: F atoms that are compared, O their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lexray.storage.documents import read_bounded
from lexray.storage.errors import CorruptDataError, UserError, last_line
from lexray.storage.store import Store
from lexray.training.checkpoint.initial import ATOMS_BYTES, read_initial_atoms
from lexray.training.checkpoint.saved import TENSORS, load_dictionary
from lexray.training.measures.held_out import FIRED_FILE
from lexray.training.measures.matching import drawn_atoms
from lexray.tuning.sweep_folder import SweepFolder, TrialRecord

LOADED_BYTES = ATOMS_BYTES
"""Dictionaries of larger files are left out."""
_HEADER_BYTES = 4096
"""More than the header of a file of numpy with one dimension takes."""


@dataclass(frozen=True)
class Atoms:
    """The atoms of a trial, at the end and at the start of its training (F, O), without those of dead latents."""

    final: Tensor
    initial: Tensor | None
    """None where they were computed from data by a version that did not keep them."""
    signed_codes: bool
    dead: int | None
    """Latents that fired on no test row; None where that was not measured, and all are compared."""


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
    trial = folder.trial_store(record.trial)
    if dictionary.atoms_from_data:
        initial = read_initial_atoms(trial, tuple(final.shape))
    else:
        initial = drawn_atoms(dictionary, record.config.get("seed", 0))
    fired_F = read_fired(trial, len(final))
    if fired_F is None:
        return Atoms(final, initial, dictionary.signed_codes, None)
    lives_F = fired_F > 0
    began = initial[lives_F] if initial is not None else None
    return Atoms(final[lives_F], began, dictionary.signed_codes, int((~lives_F).sum()))


def read_fired(store: Store, width: int) -> Tensor | None:
    """Read the test rows in which each latent of a trial fired (width), int64; None where that was not measured.

    Raises CorruptDataError.
    """
    file = f"{store.url}/{FIRED_FILE}"
    try:
        content = read_bounded(store, FIRED_FILE, 8 * width + _HEADER_BYTES, file)
        stream = BytesIO(content)
        # Before anything of the size that the header claims is allocated.
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if (shape, dtype) != ((width,), np.dtype("int64")):
            raise ValueError(f"holds {dtype} {shape}, the dictionary needs int64 {(width,)}")
        return torch.from_numpy(np.frombuffer(content, np.int64, width, stream.tell()).copy())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise CorruptDataError(f"{file}: is damaged ({last_line(str(error))})") from error
