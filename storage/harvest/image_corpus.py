"""Image corpora: image files, parquet files or a dataset with a column of encoded images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from lexray.storage.errors import UserError, as_user_error, one_line
from lexray.storage.harvest.corpus_files import CorpusFile, find_files, printable
from lexray.storage.harvest.corpus_report import CorpusReport
from lexray.storage.harvest.corpus_tables import open_dataset
from lexray.storage.harvest.harvest_file import ImageChoice
from lexray.storage.harvest.plan import ImagePieces
from lexray.storage.harvest.replica import ReplicaFacts
from lexray.storage.harvest.token_rows import CLASS_TOKEN, REGISTER
from lexray.storage.store import StorageSettings


@dataclass(frozen=True, kw_only=True)
class ImageCorpus:
    """A corpus of images, read on demand."""

    source: Sequence[Any]
    """Files, or rows of a dataset."""
    images: dict[str, Any]
    """Identity of the corpus: number of images, and a hash of the source's metadata."""
    special_ids: Sequence[int] = (CLASS_TOKEN, REGISTER)
    """Token ids of rows that do not represent patches."""
    dropped_ids: tuple[int, ...] = ()
    """Token ids that are not stored as rows."""
    pad_id: int = 0
    first_pieces: int = 2
    """Number of images in the first batch, on which the models are tried."""
    report: CorpusReport = field(default_factory=CorpusReport)
    """Report of what was left out on reading."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def facts(self) -> dict[str, Any]:
        """Return the identity of the corpus, for the dataset's provenance."""
        return {"images": self.images}

    def rows_of_pieces(self, facts: ReplicaFacts) -> np.ndarray:
        """Return the number of rows of each image (P)."""
        return np.full(len(self), facts.rows_per_image)

    def select(self, numbers: np.ndarray) -> ImagePieces:
        """Read the images of these numbers. Raises UserError when one is missing."""
        images = [self._read(int(number)) for number in numbers]
        names = [self._name(int(number)) for number in numbers]
        return ImagePieces(images=images, names=names, documents=np.asarray(numbers, dtype=np.int32))

    def _name(self, number: int) -> str:
        entry = self.source[number] if isinstance(self.source, list) else None
        return printable(entry.name) if isinstance(entry, CorpusFile) else f"row {number}"

    def _read(self, number: int) -> bytes:
        entry = self.source[number]
        if isinstance(entry, CorpusFile):
            return entry.read()
        (value,) = entry.values()
        if isinstance(value, dict) and value.get("bytes"):
            return bytes(value["bytes"])
        if isinstance(value, dict) and value.get("path"):
            with as_user_error(lambda error: f"images: {value['path']} cannot be read ({one_line(error)})", OSError):
                return Path(value["path"]).read_bytes()
        raise UserError(f"images: row {number} of the dataset holds no image")


def open_images(choice: ImageChoice, settings: StorageSettings) -> ImageCorpus:
    """Find the images. Raises UserError when there are none."""
    if choice.files is not None:
        report = CorpusReport()
        files = find_files("images.files", choice.files, settings, report)
        return ImageCorpus(source=files, images=_facts_of_files(files), report=report)
    names = None
    if choice.parquet is not None:
        names = [file.name for file in find_files("images.parquet", choice.parquet, settings)]
    return _open_table(choice, names)


def _facts_of_files(files: list[CorpusFile]) -> dict[str, Any]:
    """Names and sizes stand for the content: reading every image would take as long as the harvest."""
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(f"{file.name.rsplit('/', 1)[-1]}\0{file.size}\0".encode(errors="surrogateescape"))
    return {"images": len(files), "fingerprint": digest.hexdigest()}


def _open_table(choice: ImageChoice, names: list[str] | None) -> ImageCorpus:
    field = "images.dataset" if names is None else "images.parquet"
    opened = open_dataset(field, choice, streaming=False, data_files=names)
    import datasets

    with as_user_error(lambda _: f"{field}: column {choice.column!r} holds no images"):
        column = opened.select_columns([choice.column]).cast_column(choice.column, datasets.Image(decode=False))
    if not len(column):
        raise UserError(f"{field}: the dataset has no rows")
    digest = xxhash.xxh3_128()
    for number in range(len(column)):
        value = column[number][choice.column] or {}
        digest.update(f"{len(value.get('bytes') or b'')}\0{value.get('path')}\0".encode())
    return ImageCorpus(source=column, images={"images": len(column), "fingerprint": digest.hexdigest()})
