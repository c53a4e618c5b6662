"""Hugging Face datasets: opened by name or folder, read by row. `datasets` is imported when it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lexray.storage.config_file import nearest
from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest_file import ImageChoice, TextChoice
from lexray.storage.objects.retries import reason


def open_dataset(
    field: str, choice: TextChoice | ImageChoice, *, streaming: bool, data_files: list[str] | None = None
) -> Any:
    """The split of the dataset that `choice` names, or of the parquet files `data_files`. Raises UserError."""
    datasets = _require_datasets()
    name = choice.dataset if data_files is None else "parquet"
    with _opening(field, str(choice.dataset or data_files), datasets):
        opened = datasets.load_dataset(
            name,
            choice.config,
            split=choice.split,
            revision=choice.revision,
            streaming=streaming,
            data_files=data_files,
        )
    names = list(opened.column_names or ())
    if names and choice.column not in names:
        raise UserError(
            f"{field}: {choice.dataset or data_files} has no column {choice.column!r}{nearest(choice.column, names)}"
        )
    return opened


def rows_of_dataset(field: str, opened: Any, column: str) -> Iterator[Any]:
    """The column's values in order; None where a row has none."""
    try:
        for row in opened.select_columns([column]):
            yield row.get(column)
    except Exception as error:
        raise UserError(f"{field}: cannot read its rows ({reason(error)})") from error


def _require_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "reading a Hugging Face dataset needs the datasets package; pip install -e '.[corpora]'"
        ) from error
    return datasets


@contextmanager
def _opening(field: str, what: str, datasets: Any) -> Iterator[None]:
    """Without bars for what takes a moment; whatever goes wrong becomes one line for the user."""
    bars_were_on = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:
        raise UserError(f"{field}: cannot read {what} ({reason(error)})") from error
    finally:
        if bars_were_on:
            datasets.enable_progress_bars()
