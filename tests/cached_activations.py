"""Folders as SAELens leaves its cached activations, written with pyarrow alone; `make parity` imports real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa


def write_cache(
    folder: Path, hooks: Mapping[str, np.ndarray], token_ids: np.ndarray | None = None, contexts_per_file: int = 4
) -> Path:
    """A folder of `save_to_disk`: per hook point (contexts, positions, width), and (contexts, positions) token ids."""
    folder.mkdir(parents=True)
    contexts = len(next(iter(hooks.values())))
    starts = range(0, contexts, contexts_per_file)
    names = [f"data-{number:05d}-of-{len(starts):05d}.arrow" for number in range(len(starts))]
    for start, name in zip(starts, names, strict=True):
        part = slice(start, start + contexts_per_file)
        columns = {hook: _nested(values[part]) for hook, values in hooks.items()}
        if token_ids is not None:
            flat = pa.array(token_ids[part].ravel(), pa.int32())
            columns["token_ids"] = pa.FixedSizeListArray.from_arrays(flat, token_ids.shape[1])
        fields = [_field(name, column.type, hooks.get(name)) for name, column in columns.items()]
        batch = pa.record_batch(list(columns.values()), schema=pa.schema(fields))
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, batch.schema) as stream:
            for first in range(0, batch.num_rows, 3):  # more than one record batch in a file
                stream.write_batch(batch.slice(first, 3))
    features: dict[str, object] = {
        hook: {"shape": list(values.shape[1:]), "dtype": str(values.dtype), "_type": "Array2D"}
        for hook, values in hooks.items()
    }
    if token_ids is not None:
        item = {"dtype": "int32", "_type": "Value"}
        features["token_ids"] = {"feature": item, "length": token_ids.shape[1], "_type": "List"}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    state: dict[str, object] = dict.fromkeys(["_fingerprint", "_format_columns", "_format_type", "_split"])
    state |= {"_data_files": [{"filename": name} for name in names], "_format_kwargs": {}, "_output_all_columns": False}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def _field(name: str, kind: pa.DataType, hook: np.ndarray | None) -> pa.Field:
    """Arrays are of a type that `datasets` registers; without it, pyarrow reads the lists that carry them."""
    if hook is None:
        return pa.field(name, kind)
    metadata = {
        "ARROW:extension:name": "datasets.features.features.Array2DExtensionType",
        "ARROW:extension:metadata": json.dumps([hook.shape[1:], str(hook.dtype)]),
    }
    return pa.field(name, kind, metadata=metadata)


def _nested(values: np.ndarray) -> pa.Array:
    """(contexts, positions, width) as lists of lists."""
    contexts, positions, width = values.shape
    rows = pa.ListArray.from_arrays(np.arange(contexts * positions + 1) * width, pa.array(values.ravel()))
    return pa.ListArray.from_arrays(np.arange(contexts + 1) * positions, rows)
