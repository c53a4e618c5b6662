"""The special tokens that a tokenizer puts around a text, and whether a text has them already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lexray.storage.errors import UserError
from lexray.storage.harvest.language_model import special_token_ids

_PROBES = ("a", "1", "?", "的")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Special tokens before and after a text, such as `[CLS]` and `[SEP]`."""

    prefix: list[int]
    suffix: list[int]
    special_ids: frozenset[int]
    """Ids of all special tokens of the tokenizer."""

    @staticmethod
    def find(tokenizer: Any, text: str, ids: list[int]) -> Frame:
        """Find the special tokens around `text` of bare tokens `ids`, or around a probe text where that is ambiguous.

        For `<s>`, framed as `<s> <s>`, it is unclear which token is the text. Raises UserError when the tokens of
        a text depend on its frame.
        """
        special_ids = frozenset(special_token_ids(tokenizer))
        for probe in (text, *_PROBES):
            bare = ids if probe is text else encode(tokenizer, [probe])[0]
            if bare and not {bare[0], bare[-1]} & special_ids:
                break
        else:
            probe, bare = text, ids
        prefix, suffix = special_frame(bare, encode(tokenizer, [probe], add_special_tokens=True)[0])
        return Frame(prefix=prefix, suffix=suffix, special_ids=special_ids)

    def around(self, ids: list[int]) -> list[int]:
        return self.prefix + ids + self.suffix

    def repeats_at_start(self, ids: list[int], start: int, end: int) -> int:
        """Return the number of tokens at the start of `ids[start:end]` that repeat the prefix."""
        found, size = 0, len(self.prefix)
        while count := _overlap(ids[start + found : min(start + found + size, end)], self.prefix, self.special_ids):
            found += count
        return found

    def repeats_at_end(self, ids: list[int], start: int, end: int) -> int:
        """Return the number of tokens at the end of `ids[start:end]` that repeat the suffix."""
        found, size, backwards = 0, len(self.suffix), self.suffix[::-1]
        while count := _overlap(ids[max(start, end - found - size) : end - found][::-1], backwards, self.special_ids):
            found += count
        return found


def _overlap(ids: list[int], frame: list[int], special_ids: frozenset[int]) -> int:
    """Return the maximum number of special tokens at the start of `ids` with which `frame` begins or ends."""
    for count in range(min(len(ids), len(frame)), 0, -1):
        if ids[:count] in (frame[:count], frame[-count:]) and special_ids.issuperset(ids[:count]):
            return count
    return 0


def special_frame(bare: list[int], framed: list[int]) -> tuple[list[int], list[int]]:
    """Return the special tokens before and after a text, from its ids without and with them. Raises UserError."""
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    raise UserError("model: its tokenizer changes a text's tokens when special tokens are added; lexray cannot cut it")


def encode(tokenizer: Any, texts: list[str], *, add_special_tokens: bool = False) -> list[list[int]]:
    """Return the token ids of each text."""
    encoded = tokenizer(
        texts, add_special_tokens=add_special_tokens, return_attention_mask=False, return_token_type_ids=False
    )
    return encoded["input_ids"]
