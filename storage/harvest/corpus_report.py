"""Counts of text that reading a corpus replaced, left out or reinterpreted; shown and kept with the dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SENTENCES = {
    "lone_surrogates": "halves of characters (lone surrogates) replaced by U+FFFD",
    "missing_texts": "documents without a text (no such key, or null), taken as empty",
    "byte_order_marks": "byte order marks removed",
    "folder_loops": "links to a folder that holds them, not entered",
    "unreadable_folders": "folders that may not be read, left out",
    "own_frames": "pieces whose text had special tokens of its own where the tokenizer adds them; not added again",
    "marker_tokens": "tokens that the tokenizer marks special without a role (chat markers), not stored",
}


@dataclass(kw_only=True)
class CorpusReport:
    """Counts by kind, a key of `SENTENCES`, and the first place of each kind."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, place: str | None = None, count: int = 1) -> None:
        """Count something found at `place`; nothing when `count` is 0."""
        assert kind in SENTENCES
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count
            if place is not None:
                self.first.setdefault(kind, place)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values for a dataset's provenance; empty when there is nothing to report."""
        return {
            kind: {"count": self.counts[kind], **({"first": self.first[kind]} if kind in self.first else {})}
            for kind in SENTENCES
            if kind in self.counts
        }


def report_lines(kept: Mapping[str, Any]) -> list[str]:
    """Return a readable line for each kind in a result of `CorpusReport.as_dict`, in the order of `SENTENCES`."""
    lines = []
    for kind, sentence in SENTENCES.items():
        if kind in kept:
            first = kept[kind].get("first")
            lines.append(f"{kept[kind]['count']:,} {sentence}" + ("" if first is None else f" (the first: {first})"))
    return lines
