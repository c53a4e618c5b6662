"""Everything that lexray prints: on consoles and streams on which foreign text stays text.

Names, errors and logs come from manifests, sweep folders, servers and jobs. A console here shows them without control
characters, and takes nothing in them for markup; whatever is printed by other means (results, logs, other libraries)
passes through a stream of `plain_streams`, which lets no escape sequence through.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TextIO

from rich.console import Console, ConsoleOptions, OverflowMethod, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.table import Table
from rich.text import Text

from lexray.storage.visible_text import visible


class TextConsole(Console):
    """A console without markup, emoji and highlighting, unless asked for; styles are given by `rich.text.Text`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"emoji": False, "markup": False, "highlight": False} | options)

    @property
    def file(self) -> IO[str]:
        """The underlying stream: a `PlainStream` would remove rich's own escape sequences."""
        file = super().file
        while isinstance(file, PlainStream):
            file = file.rich_proxied_file
        return file

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:  # of rich itself: a progress bar moves the cursor
                yield segment
                continue
            style = segment.style
            yield Segment(visible(segment.text), style.update_link(None) if style and style.link else style)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """Return a spinner beside a text that is not parsed as markup."""
        return super().status(Text(status) if isinstance(status, str) else status, **options)


class PlainStream:
    """A stream that takes control characters out of what is written to it. Rich's consoles write past it."""

    def __init__(self, stream: TextIO, keeps: str = "") -> None:
        self.rich_proxied_file = stream
        self._keeps = keeps

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(visible(text, keeps=self._keeps))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def plain_streams() -> Iterator[None]:
    """Replace standard output and error by plain streams within the context."""
    before = sys.stdout, sys.stderr
    # The progress bars of other libraries go back to the start of their line.
    sys.stdout, sys.stderr = PlainStream(before[0]), PlainStream(before[1], keeps="\r")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def say(messages: Console, line: str) -> None:
    """Print a line for people, which the terminal may wrap; nothing in it is markup."""
    messages.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)


def plain_table(
    columns: Iterable[str],
    rows: Iterable[Iterable[str]],
    right: Container[str] = (),
    overflow: OverflowMethod = "ellipsis",
) -> Table:
    """Return a table without borders, with the columns in `right` aligned there; nothing in it is markup."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow=overflow)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def wide_console(min_width: int) -> TextConsole:
    """Return stdout for tables: as wide as the terminal, `min_width` columns where there is none."""
    out = TextConsole()
    return out if out.is_terminal else TextConsole(width=min_width)
