"""Order of files by their names, and whether files side by side are runs of rows of one site.

Numbers in names compare as numbers: `2` stands before `10`, and `7` and `007` are one number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise, zip_longest

from lexray.storage.errors import UserError
from lexray.storage.imports.source import SourceFile, SourceFolder

Key = tuple[str | int, ...]

RUN_WORDS = frozenset(
    ("batch", "chunk", "doc", "document", "file", "part", "piece", "row", "rows", "run", "sample", "sequence", "shard")
)
"""A number behind one of these counts runs of rows."""
PLACE_WORDS = frozenset((
    "attn", "block", "blocks", "decoder", "depth", "encoder", "h", "head", "heads", "hidden", "hook", "l", "layer",
    "layers", "mlp", "resid", "residual", "site", "sites", "state", "states",
))  # fmt: skip
"""Words for places in a model: a number in a name that holds one may count sites."""
_SHARD_OF_SPLIT = re.compile(r"-\d+-of-\d+.*")


def name_key(stem: str) -> Key:
    """Texts and numbers of a name, alternating from a text on; equal for names that differ in leading zeros only."""
    return tuple(int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", stem)))


def in_order(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The files of one folder by their keys. Raises UserError naming two files whose keys are equal."""
    ordered = sorted(files, key=lambda file: (name_key(file.stem), file.name))
    for first, second in pairwise(ordered):
        if name_key(first.stem) == name_key(second.stem):
            raise UserError(
                f"{second}: has the name or number of {first.name}, so their order is unknown; rename or remove one"
            )
    return ordered


def check_one_series(files: Sequence[SourceFile], folder: SourceFolder, choice: str) -> None:
    """Raise UserError unless the names tell that the ordered files are runs of rows of the same sites.

    They are if their names differ in numbers only and the numbers do not seem to count places in a model. `choice`
    says how the user decides otherwise.
    """
    _check_complete(files)
    keys = [name_key(file.stem) for file in files]
    for file, key in zip(files, keys, strict=True):
        if key[::2] != keys[0][::2]:
            splits = {_SHARD_OF_SPLIT.sub("", name) for name in (file.name, files[0].name)}
            if len(splits) == 2 and all(_SHARD_OF_SPLIT.search(name) for name in (file.name, files[0].name)):
                raise UserError(
                    f"{folder}: holds the splits {', '.join(sorted(splits))}; "
                    "give a folder with the files of one of them"
                )
            raise _ambiguous(folder, files[0], file, choice)
    for index in range(1, len(keys[0]), 2):
        if len({key[index] for key in keys}) > 1 and _counts_places(keys[0], index):
            raise _ambiguous(folder, files[0], files[1], choice)


def _check_complete(files: Sequence[SourceFile]) -> None:
    """Raise UserError when names such as `shard-00001-of-00004` promise more files than there are."""
    found = re.search(r"[0-9]-of-([0-9]+)", files[0].stem)
    if found and len(files) < int(found[1]):
        raise UserError(
            f"{files[0]}: its name says {int(found[1])} files, but {len(files)} are there; copy the others, "
            "or add --files rows to import these alone"
        )


def _ambiguous(folder: SourceFolder, first: SourceFile, second: SourceFile, choice: str) -> UserError:
    return UserError(
        f"{folder}: {first.name} and {second.name} may be runs of rows of one site or different sites; {choice}"
    )


def _counts_places(key: Key, index: int) -> bool:
    """Whether the number at `index` may count places in a model rather than runs of rows."""
    words = [re.findall(r"[a-z]+", str(text).lower()) for text in key[::2]]
    before = words[(index - 1) // 2][-1:]
    if before and before[0] in PLACE_WORDS:
        return True
    named = {word for text in words for word in text}
    return bool(named & PLACE_WORDS) and not (before and before[0] in RUN_WORDS)


def check_same_names(first: Sequence[SourceFile], other: Sequence[SourceFile]) -> None:
    """Raise UserError naming the first file that only one of two sites has; suffixes may differ.

    A name may hold the name of its folder: `early/early_0.npy` pairs with `late/late_0.npy`.
    """
    if [name_key(file.stem) for file in first] == [name_key(file.stem) for file in other]:
        return
    named = all(file.folder_name in file.stem and not file.folder_name.isdigit() for file in (*first, *other))
    keys, others = (
        [name_key(file.stem.replace(file.folder_name, "") if named else file.stem) for file in one]
        for one in (first, other)
    )
    if keys == others:
        return
    for index, (key, another) in enumerate(zip_longest(keys, others)):
        if key == another:
            continue
        first_lacks = key is None or (another is not None and another < key)
        found, lacking = (other[index], first[0]) if first_lacks else (first[index], other[0])
        raise UserError(
            f"{found}: {lacking.folder_name} has no file of this name; "
            "rows of sites are paired file by file: give each site the same file names"
        )
