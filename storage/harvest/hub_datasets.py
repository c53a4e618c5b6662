"""Hugging Face datasets: opened by name or folder, read by row. `datasets` is imported when it is needed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lexray.storage.config_file import nearest
from lexray.storage.errors import UserError, as_user_error, one_line
from lexray.storage.harvest.harvest_file import ImageChoice, TextChoice


def open_dataset(
    field: str, choice: TextChoice | ImageChoice, *, streaming: bool, data_files: list[str] | None = None
) -> Any:
    """The split of the dataset that `choice` names, or of the parquet files `data_files`. Raises UserError."""
    needed = "reading a Hugging Face dataset needs the datasets package; pip install -e '.[corpora]'"
    with as_user_error(lambda _: needed, ImportError):
        import datasets
    with _opening(field, str(choice.dataset or data_files), datasets):
        if data_files is None and _is_saved(str(choice.dataset)):
            opened = datasets.load_from_disk(choice.dataset)
        else:
            opened = datasets.load_dataset(
                choice.dataset if data_files is None else "parquet",
                choice.config,
                split=choice.split,
                revision=choice.revision,
                streaming=streaming,
                # The library takes names for patterns.
                data_files=None if data_files is None else [glob.escape(name) for name in data_files],
            )
    names = list(opened.column_names or ())
    if names and choice.column not in names:
        raise UserError(
            f"{field}: {choice.dataset or data_files} has no column {choice.column!r}{nearest(choice.column, names)}"
        )
    return opened


def _is_saved(folder: str) -> bool:
    """Whether it is what `Dataset.save_to_disk` writes."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_info.json"))


def rows_of_dataset(field: str, opened: Any, column: str) -> Iterator[Any]:
    """The column's values in order; None where a row has none."""
    with as_user_error(lambda error: f"{field}: cannot read its rows ({one_line(error)})"):
        for row in opened.select_columns([column]):
            yield row.get(column)


@contextmanager
def _opening(field: str, what: str, datasets: Any) -> Iterator[None]:
    """Without bars for what takes a moment; whatever goes wrong becomes one line for the user."""
    bars_were_on = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:
        said = one_line(error)
        if os.path.isdir(what) and glob.escape(what) != what:
            said = "the datasets library takes *, ? and [ in a folder's name for a pattern; rename the folder"
        raise UserError(f"{field}: cannot read {what} ({said})") from error
    finally:
        if bars_were_on:
            datasets.enable_progress_bars()
