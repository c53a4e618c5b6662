"""Checkpoints: the whole state of a training by name, written in parts by the ranks, a checksummed manifest last.

    checkpoints/step-000000200-ATTEMPT/part-00000.safetensors   rows of tensors that rank 0 wrote; and so on
    checkpoints/step-000000200-ATTEMPT/part-00000.json          where they lie in it, with their checksums
    checkpoints/step-000000200-ATTEMPT/manifest.json            the step, the dictionary's options, all parts

The tensors are fp32 masters and buffers (`weights/NAME`) and Adam's moments (`moments/exp_avg.NAME`), each by its whole
shape, so any mesh and ZeRO stage reads what another one wrote: a rank reads the rows that it holds. Together with the
step that is the whole state: the stream is a function of the step, so are the schedules, and counters, thresholds and
coefficients are buffers. A folder without a valid manifest does not exist. ATTEMPT is drawn anew at each start of a
training, so that parts of two attempts never mix.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.torch import save
from torch import Tensor

from lexray.storage.errors import CorruptDataError
from lexray.storage.manifest import chunk_checksum
from lexray.storage.store import Store
from lexray.storage.writer import tensor_offsets
from lexray.training.checkpoint.parts import MOMENTS, WEIGHTS, WHOLE, Shard, ShardSpec

log = logging.getLogger("lexray")

MANIFEST, VERSION = "manifest.json", 2
MAX_DIMENSIONS = 8
_FOLDER = re.compile(r"step-([0-9]{1,18})(-.*)?")
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64, torch.int64)}


class Checkpoint(NamedTuple):
    """The state after `step` finished steps, as one rank holds it."""

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by key."""
        for name, tensor in self.weights.items():
            yield WEIGHTS + name, tensor
        for name, tensor in self.moments.items():
            yield MOMENTS + name, tensor


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredRows(_Frozen):
    """Rows of a tensor in a part's file. A manifest may be untrusted, so its numbers are checked against each other."""

    start: int = Field(ge=0)
    whole_rows: int = Field(ge=0)
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=MAX_DIMENSIONS)
    dtype: str
    offset: int = Field(ge=0)
    bytes: int = Field(ge=0)
    xxh3: str

    @property
    def rows(self) -> int:
        """Number of rows stored here; a scalar is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def whole(self) -> tuple[int, str, list[int]]:
        """Return what must be equal in all parts of one tensor: its rows, dtype and further dimensions."""
        return self.whole_rows, self.dtype, self.shape[1:]

    @model_validator(mode="after")
    def _agree(self) -> StoredRows:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype} is none of {', '.join(DTYPES)}")
        promised = math.prod(self.shape) * DTYPES[self.dtype].itemsize
        if self.bytes != promised:
            raise ValueError(f"{self.bytes} bytes, but its shape takes {promised}")
        if self.start + self.rows > self.whole_rows:
            raise ValueError(f"rows {self.start} to {self.start + self.rows} of {self.whole_rows}")
        return self


class Part(_Frozen):
    """Tensors that one rank wrote, and their file."""

    file: str = Field(pattern=r"^part-[0-9]{5,9}\.safetensors$")
    tensors: dict[str, StoredRows]


class Manifest(_Frozen):
    """Content of a checkpoint: its step, its parts, and how to build the dictionary."""

    version: int = VERSION
    step: int
    about: dict[str, Any]
    """Metadata of the tensors: the dictionary's options and site widths."""
    parts: list[Part]


def write_part(store: Store, folder: str, rank: int, tensors: Mapping[str, Shard]) -> Part:
    """Write a rank's part: the tensors, then the index of their offsets and checksums."""
    file = f"part-{rank:05d}"
    data = save({key: part.tensor.contiguous() for key, part in tensors.items()})
    offsets, view = tensor_offsets(data), memoryview(data)
    stored = {}
    for key, part in tensors.items():
        size = part.tensor.numel() * part.tensor.element_size()
        stored[key] = StoredRows(
            start=part.start,
            whole_rows=part.whole_rows,
            shape=list(part.tensor.shape),
            dtype=str(part.tensor.dtype).removeprefix("torch."),
            offset=offsets[key],
            bytes=size,
            xxh3=chunk_checksum(view[offsets[key] : offsets[key] + size]),
        )
    store.write(f"{folder}/{file}.safetensors", data)
    made = Part(file=f"{file}.safetensors", tensors=stored)
    store.write(f"{folder}/{file}.json", made.model_dump_json().encode())
    return made


def write_manifest(store: Store, folder: str, step: int, parts: Iterable[Part], about: dict[str, Any]) -> None:
    """Write the manifest, which makes the parts a checkpoint."""
    content = Manifest(step=step, about=about, parts=list(parts)).model_dump_json()
    store.write(
        f"{folder}/{MANIFEST}", json.dumps({"xxh3": chunk_checksum(content.encode()), "content": content}).encode()
    )


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint whose manifest is valid; checksums of the tensors are verified on reading."""

    store: Store
    folder: str
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    def read(self, share: ShardSpec = WHOLE) -> Checkpoint:
        """Return the state as a rank holds it. Raises CorruptDataError naming the file that is missing or damaged."""
        state = self._read_keys(share)
        return Checkpoint(self.step, _below(WEIGHTS, state), _below(MOMENTS, state))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the full shapes of the weights and buffers by name.

        Raises CorruptDataError where the manifest lists more bytes for a part than its file holds.
        """
        for part in self.manifest.parts:
            self._check_room(part)
        return {
            key.removeprefix(WEIGHTS): (rows.whole_rows, *rows.shape[1:]) if rows.shape else ()
            for key, ((_, rows), *_) in self._by_key().items()
            if key.startswith(WEIGHTS)
        }

    def read_weights(self) -> dict[str, Tensor]:
        """Return the full weights and buffers by name, without the moments. Raises CorruptDataError like `read`."""
        return _below(WEIGHTS, self._read_keys(WHOLE, WEIGHTS))

    def _read_keys(self, share: ShardSpec, prefix: str = "") -> dict[str, Tensor]:
        return {
            key: self._read_rows(key, stored, share.to_read(key, stored[0][1].whole_rows))
            for key, stored in self._by_key().items()
            if key.startswith(prefix)
        }

    def _check_room(self, part: Part) -> None:
        size, wanted = self.store.size(f"{self.folder}/{part.file}"), 0
        for key, rows in part.tensors.items():
            if rows.dtype not in DTYPES or min(rows.shape, default=0) < 0:
                raise CorruptDataError(f"{self.folder}/{MANIFEST}: {key[:80]!r} is no tensor")
            if rows.bytes != math.prod(rows.shape) * DTYPES[rows.dtype].itemsize:
                raise CorruptDataError(
                    f"{self.folder}/{MANIFEST}: {key[:80]!r} has {rows.bytes} bytes, not its shape's"
                )
            wanted += rows.bytes
        if size is None or size < wanted:
            raise CorruptDataError(f"{self.folder}/{part.file}: has {size or 0:,} bytes, the manifest says {wanted:,}")

    def _by_key(self) -> dict[str, list[tuple[str, StoredRows]]]:
        found: dict[str, list[tuple[str, StoredRows]]] = {}
        for part in self.manifest.parts:
            for key, rows in part.tensors.items():
                found.setdefault(key, []).append((part.file, rows))
        for key, stored in found.items():
            if any(rows.whole != stored[0][1].whole for _, rows in stored):
                raise CorruptDataError(f"{self.folder}/{MANIFEST}: its parts disagree on what {key} is")
        return {key: sorted(rows, key=lambda entry: entry[1].start) for key, rows in found.items()}

    def _read_rows(self, key: str, stored: list[tuple[str, StoredRows]], wanted: range) -> Tensor:
        pieces, at = [], wanted.start
        for file, rows in stored:
            begin, end = max(at, rows.start), min(wanted.stop, rows.start + rows.rows)
            if begin >= end:
                continue
            if begin != at:
                break
            tensor = self._read_tensor(file, key, rows)
            pieces.append(tensor[begin - rows.start : end - rows.start] if rows.shape else tensor)
            at = end
        if at != wanted.stop:
            raise CorruptDataError(f"{self.folder}/{MANIFEST}: rows {at} to {wanted.stop} of {key} are in no part")
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _read_tensor(self, file: str, key: str, rows: StoredRows) -> Tensor:
        data = _read(self.store, f"{self.folder}/{file}", rows.offset, rows.bytes)
        if len(data) != rows.bytes or chunk_checksum(data) != rows.xxh3:
            raise CorruptDataError(f"{self.folder}/{file}: {key} does not match the manifest's checksum")
        if not data:
            return torch.empty(rows.shape, dtype=DTYPES[rows.dtype])
        return torch.frombuffer(bytearray(data), dtype=DTYPES[rows.dtype]).view(rows.shape)


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def open_checkpoint(store: Store, folder: str) -> StoredCheckpoint:
    """Open a checkpoint. Raises CorruptDataError naming the manifest when it is missing or not this checkpoint's."""
    try:
        outer = json.loads(_read(store, f"{folder}/{MANIFEST}"))
        content = outer["content"]
        intact = chunk_checksum(content.encode()) == outer["xxh3"] and set(outer) == {"content", "xxh3"}
        manifest = Manifest.model_validate_json(content)
        intact = intact and manifest.version == VERSION and step_of(folder) == manifest.step and bool(manifest.parts)
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError, RecursionError):
        intact = False
    if not intact:
        raise CorruptDataError(f"{folder}/{MANIFEST}: not the manifest of this checkpoint")
    return StoredCheckpoint(store, folder, manifest)


def newest_checkpoint(store: Store, share: ShardSpec = WHOLE) -> Checkpoint | None:
    """Return the newest valid checkpoint, walking back over damaged ones (each is named in the log)."""
    for folder in reversed(checkpoint_folders(store)):
        try:
            return open_checkpoint(store, folder).read(share)
        except CorruptDataError as error:
            log.warning("checkpoint skipped: %s", error)
    return None


def checkpoint_folders(store: Store) -> list[str]:
    """Return the folders of checkpoints, complete or not, oldest first."""
    return sorted(folder for folder in store.list_folders() if step_of(folder) is not None)


def folder_of(step: int, attempt: str) -> str:
    """Return the name of a checkpoint's folder; names sort by step."""
    return f"step-{step:09d}-{attempt}"


def step_of(folder: str) -> int | None:
    """Return the step in a folder's name; None for other folders."""
    found = _FOLDER.fullmatch(folder)
    return int(found[1]) if found else None


def _read(store: Store, path: str, start: int = 0, length: int | None = None) -> bytes:
    try:
        return store.read(path) if length is None else store.read_range(path, start, length)
    except FileNotFoundError as error:
        folder, name = path.rsplit("/", 1)
        raise CorruptDataError(f"{folder}: incomplete, {name} is missing") from error
