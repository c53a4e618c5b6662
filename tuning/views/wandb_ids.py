"""Ids and names of W&B runs: a set of their own for each sweep folder, whatever its trials share with other sweeps.

A trial's id is a hash of its configuration, so that equal trials of two sweeps share it. W&B continues the run whose
id it is given. The id of a run therefore ends with a hash of the folder's url and of a random number kept in the folder
(`wandb.json`): a copy of the folder has other runs, and so has a new sweep at the place of a deleted one.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass

from pydantic import TypeAdapter

from lexray.storage.documents import read_document
from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.store import Store

FILE, NONCE = "wandb.json", "nonce"
MAX_ID_CHARACTERS, MAX_NAME_CHARACTERS = 64, 128
SUFFIX_CHARACTERS = 10


@dataclass(frozen=True)
class _Document:
    nonce: str


_DOCUMENT = TypeAdapter(_Document)


@dataclass(frozen=True)
class RunIds:
    """Ids of the runs of one sweep folder."""

    suffix: str

    def of_trial(self, trial: str) -> str:
        return shortened(f"{trial}-{self.suffix}", MAX_ID_CHARACTERS)

    @property
    def of_sweep(self) -> str:
        return f"sweep-{self.suffix}"

    @staticmethod
    def of_folder(store: Store) -> RunIds:
        """Read the folder's random number, or write one. Raises UserError when `wandb.json` holds something else."""
        return RunIds(_hash(f"{_nonce(store)} {store.url}"))


def shortened(name: str, max_characters: int) -> str:
    """Return the name, its end replaced by a hash of the whole where it is too long."""
    if len(name) <= max_characters:
        return name
    return f"{name[: max_characters - SUFFIX_CHARACTERS - 1]}-{_hash(name)}"


def file_name(name: str) -> str:
    """Return the name of a folder for any sweep name: one component, no separators, at most 64 characters."""
    return shortened(re.sub(r"[^\w-]", "_", name, flags=re.ASCII) or "_", MAX_ID_CHARACTERS)


def _nonce(store: Store) -> str:
    try:
        return read_document(store, FILE, _DOCUMENT).nonce
    except FileNotFoundError:
        return _new_nonce(store)
    except CorruptDataError as error:
        raise UserError(f"{store.url}/{error}; remove it to start new W&B runs") from error


def _new_nonce(store: Store) -> str:
    """Write a random number and return it; return an empty one for a folder that may only be read."""
    nonce = secrets.token_hex(8)
    try:
        store.write(FILE, json.dumps({NONCE: nonce}).encode())
    except PermissionError:
        return ""
    return nonce


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:SUFFIX_CHARACTERS]
