"""Make foreign text safe to show: what a terminal, a browser or a spreadsheet would act on is taken out of it."""

from __future__ import annotations

import re

_SEQUENCE = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, clear screen
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)"  # OSC: title, clipboard
    "|\x1b[ -/]*[0-~]"
)
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions
    "\u2028\u2029\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"  # separators, marks, tags
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How a cell begins that a spreadsheet computes; the last four are the same signs in full width."""


def visible(text: str, *, keeps: str = "") -> str:
    """The text without escape sequences and control characters, except line feeds, tabs and what is in `keeps`.

    Also without marks that turn the direction of the text around. Half characters become U+FFFD.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _INVISIBLE.sub(lambda found: found[0] if found[0] in keeps else "", _SEQUENCE.sub("", text))
    return _SURROGATE.sub("\ufffd", text)


def spreadsheet_cell(text: str) -> str:
    """The text as a cell of a CSV file: one that a spreadsheet would take for a formula is marked as text by a `'`."""
    text = visible(text)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
