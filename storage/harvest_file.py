"""The harvest file: which model is read where, on which text, into which dataset.

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
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from storage.config_file import FileModel, StorageBlock
from storage.manifest import COLUMNS

SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class SiteChoice(FileModel):
    """Where in the model a site is read."""

    hidden_state: int = Field(ge=0)
    """The residual stream after this many layers, as Hugging Face's `hidden_states`: 0 is the embeddings."""


class TextChoice(FileModel):
    """Where the documents come from; exactly one of the two."""

    python: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`module:attribute`, a list of strings or a dict with string values: a document each."""
    files: str | None = Field(default=None, min_length=1)
    """Path or glob (`**` crosses folders) of UTF-8 files: a document each, in the order of their names."""

    @model_validator(mode="after")
    def _one_source(self) -> TextChoice:
        if (self.python is None) == (self.files is None):
            raise ValueError("give one of python (`module:attribute`) and files (a path or glob)")
        return self


class HarvestFile(FileModel):
    """A harvest as the user writes it."""

    output: str = Field(min_length=1)
    """Url or path of the dataset to write."""
    model: str = Field(min_length=1)
    """Hugging Face name, path, or `package:IMPORT_NAME/SUBFOLDER` for a folder inside an installed Python package."""
    sites: dict[str, SiteChoice] = Field(min_length=1)
    """Name of each site and where it is read; all sites have the same rows."""
    text: TextChoice
    context_length: int = Field(default=256, ge=1)
    """Tokens, special ones included, of the pieces that a document is cut into."""
    batch_texts: int = Field(default=16, ge=1)
    """Pieces in one forward pass; changes the speed only."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """What the vectors are stored as; the model runs in its checkpoint's own dtype."""
    special_tokens: Literal["drop", "keep"] = "drop"
    """Whether rows of special tokens ([CLS], <bos>, ...) are stored. The model sees them either way."""
    chunk_rows: int = Field(default=1024, ge=1)
    """Rows of the unit of reading."""
    shard_rows: int = Field(default=65_536, ge=1)
    """Rows of a file."""
    max_rows: int | None = Field(default=None, ge=1)
    """Stop after this many rows."""
    storage: StorageBlock = StorageBlock()

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
    def _chunks_fill_shards(self) -> HarvestFile:
        if self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows {self.shard_rows} is not a multiple of chunk_rows {self.chunk_rows}")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the rows and how they are stored, as plain JSON values."""
        return self.model_dump(mode="json", exclude={"output", "storage", "batch_texts"}, exclude_none=True)
