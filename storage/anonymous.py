"""Take out of what is written for others who ran it and where: home folder, host name, credentials in urls."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")
HOST = "HOST"
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+@")
_SHORTEST = 3
"""Host names of fewer letters are words of the language, too."""


def without_home(value: Value) -> Value:
    """Return plain JSON values with the home folder written as `~`, which every reader of paths here expands."""
    home = _home()
    return value if home is None else _replaced(value, re.compile(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])"), "~")


def without_names(text: str) -> str:
    """Return a text with the home folder written as `~`, this machine's name as `HOST`, and no credentials in urls."""
    text = _CREDENTIALS.sub("***@", text)
    host = socket.gethostname()
    if len(host) >= _SHORTEST:
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", HOST, text)
    return without_home(text)


def _home() -> str | None:
    """None for a user without one, and for `/`, which is no secret."""
    try:
        home = str(Path.home())
    except RuntimeError:
        return None
    return home if Path(home).is_absolute() and home != "/" else None


def _replaced(value: Any, pattern: re.Pattern[str], by: str) -> Any:
    if isinstance(value, str):
        return pattern.sub(by, value)
    if isinstance(value, dict):
        return {name: _replaced(one, pattern, by) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(one, pattern, by) for one in value) if type(value) in (list, tuple) else value
    return value
