"""A dataset's manifest: the one file that lists its rows, the location of each chunk and its checksum.

Layout of a dataset folder: `manifest.json` and `shards/NNNNNN.safetensors`. A shard holds one tensor per site
(rows x width, the site's dtype) and one per column (rows): token id, position, document, and the norms of each site.
Every tensor of a shard is cut into chunks of `chunk_rows` rows (the last one shorter); a chunk of a tensor is one
contiguous byte range with its own xxh3-64 checksum. The manifest gives each tensor's byte offset, so a chunk is one
ranged read and no shard header is ever parsed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Annotated, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, FailFast, Field, TypeAdapter, field_validator

from lexray.storage.documents import Plain, parse_document, read_bounded, shortened
from lexray.storage.errors import CorruptDataError, UserError, as_user_error
from lexray.storage.manifest_checks import contradictions
from lexray.storage.polling import read_many
from lexray.storage.store import Store, reachable
from lexray.storage.synthetic_url import SCHEME

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
SHARD_FILE = re.compile(r"shards/[0-9]{6,12}\.safetensors")
"""Pattern of shard files; an untrusted manifest cannot name others."""
COLUMNS = {"token_id": "int32", "position": "int32", "document": "int32"}
"""Columns that every dataset has besides the norms of its sites (`norm_column`)."""
MAX_BYTES = 512 * 2**20
"""Maximum bytes of a manifest: that of 20 TB in chunks of a few MiB has some 250 MB."""
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "int32": 4}


class Frozen(BaseModel):
    """Base of the models of a dataset's documents: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Site(Frozen):
    """A place in a model where vectors were read, with exact statistics of the stored values."""

    width: int
    dtype: Literal["bfloat16", "float16", "float32"]
    source: str = ""
    """Description of the place in the model: `hidden state after layer 3`."""
    mean: Annotated[list[float], FailFast()]
    """Mean vector over all rows (width)."""
    mean_squared_norm: float
    """Mean over rows of the squared Euclidean norm, before centring."""
    norm_quantiles: dict[str, float]
    """Exact quantiles of the norms by level ("0.5" is the median), without interpolation."""

    @property
    def row_bytes(self) -> int:
        return self.width * ITEM_BYTES[self.dtype]


class Shard(Frozen):
    """One immutable file of rows."""

    file: str
    """Path below the dataset's folder: `shards/NNNNNN.safetensors`."""
    rows: int
    bytes: int
    offsets: dict[str, int]
    """Byte offset of each tensor (sites and columns) in the file."""
    checksums: dict[str, Annotated[list[str], FailFast()]]
    """xxh3-64 (hex) of each chunk in order, per tensor."""

    @field_validator("file")
    @classmethod
    def _is_a_shard(cls, file: str) -> str:
        if not SHARD_FILE.fullmatch(file):
            raise ValueError(f"{file[:80]!r} cannot be the name of a shard, which is shards/NNNNNN.safetensors")
        return file


class Manifest(Frozen):
    """Content of a dataset. `id` hashes everything but the provenance: equal ids mean equal rows."""

    format: Literal["lexray-activations"] = "lexray-activations"
    version: int = FORMAT_VERSION
    id: str
    rows: int = Field(gt=0)
    chunk_rows: int = Field(gt=0)
    sites: dict[str, Site]
    columns: dict[str, str]
    """Dtype of each column; see `columns_of`."""
    special_token_ids: Annotated[list[int], FailFast()] = Field(default_factory=list)
    """Special token ids of the model's tokenizer; their rows can be filtered on reading."""
    shards: Annotated[list[Shard], FailFast()] = Field(min_length=1)
    provenance: dict[str, Plain] = Field(default_factory=dict)

    def site(self, name: str, *, field: str = "site") -> Site:
        """Return the site `name`. Raises UserError listing the dataset's sites."""
        if name not in self.sites:
            raise UserError(f"{field}: the dataset has no site {name!r}; its sites are {', '.join(self.sites)}")
        return self.sites[name]

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def columns_of_sites(self) -> dict[str, str]:
        """Return the columns of a dataset of these sites."""
        return columns_of(self.sites)

    def row_bytes(self, tensor: str) -> int:
        """Return the bytes of one row of a site or column."""
        return self.sites[tensor].row_bytes if tensor in self.sites else ITEM_BYTES[self.columns[tensor]]

    def check_shards(self, store: Store) -> None:
        """Raise UserError naming the first shard that is missing or of another size."""
        if store.scheme == SCHEME:
            return
        with reachable("dataset", store.url):
            sizes = read_many(lambda shard: store.size(shard.file), self.shards)
        for shard, size in zip(self.shards, sizes, strict=True):
            if size is None:
                raise UserError(f"dataset {store.url}: shard {shard.file} is missing; harvest it again")
            if size != shard.bytes:
                raise UserError(
                    f"dataset {store.url}: shard {shard.file} has {size:,} bytes, the manifest says {shard.bytes:,}; "
                    "it is truncated or replaced, harvest it again"
                )


class _Version(BaseModel):
    """Fields of a manifest of any version."""

    version: Plain = None


def norm_column(site: str) -> str:
    """Return the name of the column with a site's Euclidean norms; no site can have this name."""
    return f"norm:{site}"


def columns_of(sites: Iterable[str]) -> dict[str, str]:
    """Return the columns of a dataset of these sites."""
    return COLUMNS | {norm_column(site): "float32" for site in sites}


_MANIFEST, _VERSION = TypeAdapter(Manifest), TypeAdapter(_Version)


def load_manifest(store: Store) -> Manifest:
    """Read and check a dataset's manifest. Raises UserError when it is missing or invalid.

    That of a `synthetic://` url is made, not read.
    """
    if store.scheme == SCHEME:
        from lexray.storage.synthetic.dataset import generated_manifest

        return generated_manifest(store.url)
    manifest = read_manifest(store)
    for file, what in contradictions(manifest):
        raise UserError(f"dataset {store.url}: {file}: {what}; harvest it again")
    return manifest


def read_manifest(store: Store) -> Manifest:
    """Read a manifest without checking that its numbers agree with each other."""
    missing = f"dataset {store.url}: no {MANIFEST} there; run `lexray harvest` or fix the url"
    with (
        reachable("dataset", store.url),
        as_user_error(lambda _: missing, FileNotFoundError, NotADirectoryError),
        as_user_error(lambda error: f"dataset {store.url}: {error}; harvest it again", CorruptDataError),
    ):
        raw = read_bounded(store, MANIFEST, MAX_BYTES)
        version = parse_document(raw, _VERSION, MANIFEST).version
        if version != FORMAT_VERSION:
            raise CorruptDataError(f"manifest version {shortened(repr(version))}, this lexray reads {FORMAT_VERSION}")
        manifest = parse_document(raw, _MANIFEST, MANIFEST)
    if dataset_id(manifest) != manifest.id:
        raise UserError(
            f"dataset {store.url}: {MANIFEST} was changed after it was written: its id is {shortened(manifest.id)}, "
            f"its content gives {dataset_id(manifest)}; harvest it again"
        )
    return manifest


def dataset_id(manifest: Manifest) -> str:
    """Return a short hash of everything that determines the rows, without provenance."""
    content = manifest.model_dump(mode="json", exclude={"id", "provenance"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def chunk_checksum(data: bytes | memoryview) -> str:
    """Return the xxh3-64 in hex."""
    return str(xxhash.xxh3_64_hexdigest(data))
