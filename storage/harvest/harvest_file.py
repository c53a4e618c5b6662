"""The harvest file: model, sites, text or images, and the dataset to write.

```yaml
output: runs/quickstart/activations
model: sentence-transformers/all-MiniLM-L6-v2
sites:
  layer3: {hidden_state: 3}
text: {files: "corpus/**/*.txt"}
```
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lexray.storage.config_file import FileModel
from lexray.storage.harvest.site_choice import SiteChoice
from lexray.storage.manifest import COLUMNS
from lexray.storage.objects.settings import StorageSettings

SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Context = Literal["split", "truncate", "pack"]
_OF_TABLES = ("parquet", "jsonl", "dataset")
_OF_DATASETS = ("config", "split", "revision", "streaming")


class CorpusChoice(FileModel):
    """Source of the documents or images: exactly one of the fields `sources`."""

    sources: ClassVar[tuple[str, ...]]
    choices: ClassVar[str]
    """Words of a message that lists the sources."""

    dataset: str | None = Field(default=None, min_length=1)
    """Hugging Face dataset: its name, or a folder."""
    config: str | None = None
    """Configuration of the dataset."""
    split: str = "train"
    """Split of the dataset."""
    revision: str | None = None
    """Commit, tag or branch of the dataset."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in self.sources if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {self.choices}")
        if given[0] not in _OF_TABLES and "column" in self.model_fields_set:
            raise ValueError(f"column has no meaning with {given[0]}")
        for name in _OF_DATASETS:
            if given[0] != "dataset" and name in self.model_fields_set:
                raise ValueError(f"{name} has no meaning with {given[0]}")
        return self


class TextChoice(CorpusChoice):
    """Source of the documents: exactly one of python, files, jsonl, parquet and dataset."""

    sources = ("python", "files", *_OF_TABLES)
    choices = "python (`module:attribute`) and files, jsonl, parquet (a path or glob), dataset"

    python: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`module:attribute`, a list of strings or a dict with string values: a document each."""
    files: str | None = Field(default=None, min_length=1)
    """Path, url or glob (`**` crosses folders) of UTF-8 files: a document each, in the order of their names."""
    jsonl: str | None = Field(default=None, min_length=1)
    """Path, url or glob of files with a JSON object a line: a document each. Packed files are unpacked."""
    parquet: str | None = Field(default=None, min_length=1)
    """Path, url or glob of parquet or arrow files: a document each row."""
    column: str = Field(default="text", min_length=1)
    """Column of parquet files or a dataset, or key of JSON lines, that holds the document."""
    streaming: bool = True
    """Whether the dataset is streamed over the network instead of downloaded first."""


class ImageChoice(CorpusChoice):
    """Source of the images: exactly one of files, parquet and dataset."""

    sources = ("files", "parquet", "dataset")
    choices = "files, parquet (a path or glob) and dataset"

    files: str | None = Field(default=None, min_length=1)
    """Path, url or glob of image files, in the order of their names."""
    parquet: str | None = Field(default=None, min_length=1)
    """Path or glob of parquet files with a column of encoded images."""
    column: str = Field(default="image", min_length=1)
    """Column of parquet files or a dataset that holds the image."""


class HarvestFile(FileModel):
    """A harvest as the user writes it."""

    output: str = Field(min_length=1)
    """Url or path of the dataset to write."""
    model: str | None = Field(default=None, min_length=1)
    """Hugging Face name, path, or `package:IMPORT_NAME/SUBFOLDER` for a folder inside an installed Python package."""
    models: dict[str, str] | None = Field(default=None, min_length=1)
    """Instead of `model`: several, each under a name that sites refer to. All read the same tokens or images."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype in which the models compute; `auto` is each checkpoint's own."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Implementation of attention in the models."""
    sites: dict[str, SiteChoice] = Field(min_length=1)
    """Name of each site and where it is read; all sites have the same rows."""
    text: TextChoice | None = None
    images: ImageChoice | None = None
    """Instead of `text`, for a vision model: one row for each patch. A bare string is a path or glob of files."""
    rows: Literal["token", "text"] = "token"
    """Whether a row is a token, or a whole text (pooled over its tokens)."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """With `rows: text`: mean of all tokens (the default), the first, or the last."""
    context: Context | None = None
    """`split` cuts documents into pieces (the default for tokens), `truncate` keeps the first piece of each (the only
    option for `rows: text`), `pack` joins documents by the separator and cuts the result."""
    context_length: int = Field(default=256, ge=1)
    """Tokens of a piece, special ones included."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens, padding included, of one forward pass (at least one piece). Padding affects the last bits of rows."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Dtype in which the vectors are stored."""
    special_tokens: Literal["drop", "keep"] = "drop"
    """Whether rows of special tokens ([CLS], <bos>, registers, ...) are stored. The model sees them either way."""
    spread: bool = True
    """Whether the rows of a document are spread over all shards; else rows keep the order of the text."""
    chunk_rows: int = Field(default=1024, ge=1)
    """Rows of a chunk, the unit of reading."""
    shard_rows: int = Field(default=65_536, ge=1)
    """Approximate rows of a shard: pieces are not divided."""
    max_rows: int | None = Field(default=None, ge=1)
    """Stop after this many rows."""
    workers: int | Literal["auto"] = "auto"
    """Replicas of the model; `auto` is one for each GPU, or one without any."""
    cpus_per_worker: int | Literal["auto"] = "auto"
    """CPU threads of each replica; `auto` divides the machine's among its replicas. Fixed when a harvest begins."""
    gpus_per_worker: float | Literal["auto"] = "auto"
    """GPUs of each replica, also below 1; `auto` is 1 where there are any."""
    storage: StorageSettings = StorageSettings()

    @field_validator("images", mode="before")
    @classmethod
    def _bare_glob(cls, images: Any) -> Any:
        return {"files": images} if isinstance(images, str) else images

    @field_validator("workers", "cpus_per_worker", "gpus_per_worker")
    @classmethod
    def _positive(cls, count: Any, info: ValidationInfo) -> Any:
        smallest = 0 if info.field_name == "gpus_per_worker" else 1
        if count != "auto" and count < smallest:
            raise ValueError(f"is below {smallest}")
        return count

    @field_validator("sites")
    @classmethod
    def _names_are_free(cls, sites: dict[str, SiteChoice]) -> dict[str, SiteChoice]:
        for name in sites:
            if not SITE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a site; use letters, digits, _, - and .")
            if name in COLUMNS:
                raise ValueError(f"{name!r} is the name of a column ({', '.join(COLUMNS)}); choose another")
        return sites

    @model_validator(mode="after")
    def _sites_name_models(self) -> HarvestFile:
        if (self.model is None) == (self.models is None):
            raise ValueError("give one of model (a name or path) and models (several, by name)")
        for name, site in self.sites.items():
            if self.models is None and site.model is not None:
                raise ValueError(f"sites.{name}.model: {site.model!r}, but the file has one model; leave it out")
            if self.models is not None and site.model not in self.models:
                said = "says no model" if site.model is None else f"says model {site.model!r}"
                raise ValueError(f"sites.{name} {said}; the models are {', '.join(self.models)}")
        unread = set(self.models or ()) - {site.model for site in self.sites.values()}
        if unread:
            raise ValueError(f"models.{min(unread)} is read by no site; leave it out")
        return self

    @model_validator(mode="after")
    def _settings_agree(self) -> HarvestFile:
        if self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows {self.shard_rows} is not a multiple of chunk_rows {self.chunk_rows}")
        if (self.text is None) == (self.images is None):
            raise ValueError("give one of text and images")
        if self.images is not None:
            for field in ("rows", "pooling", "context", "context_length"):
                if field in self.model_fields_set:
                    raise ValueError(f"{field} has no meaning with images: each patch is a row")
        if self.rows == "token" and self.pooling is not None:
            raise ValueError("pooling has no meaning with rows: token; write rows: text")
        if self.rows == "text" and self.context not in (None, "truncate"):
            raise ValueError(f"context: {self.context}, but rows: text takes one piece of each document (truncate)")
        return self

    @property
    def named_models(self) -> dict[str, str]:
        """Return the models by the field that names them: `model`, or `models.NAME`."""
        if self.models is None:
            assert self.model is not None
            return {"model": self.model}
        return {f"models.{name}": model for name, model in self.models.items()}

    def sites_of(self, field: str) -> dict[str, SiteChoice]:
        """Return the sites read in one of `named_models`."""
        return {n: s for n, s in self.sites.items() if field == ("model" if s.model is None else f"models.{s.model}")}

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that determine the rows and their storage, as plain JSON values."""
        exclude = {"output", "storage", "workers", "cpus_per_worker", "gpus_per_worker"}
        corpus = {
            name: choice.model_dump(exclude_defaults=True)
            for name, choice in (("text", self.text), ("images", self.images))
            if choice is not None
        }
        return self.model_dump(mode="json", exclude=exclude | {"text", "images"}, exclude_none=True) | corpus
