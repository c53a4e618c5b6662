"""Find the series of tensors in a folder: files of one folder, or a subfolder for each site."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import product

from lexray.storage.errors import UserError
from lexray.storage.imports.array_files import RAW_SUFFIXES, RawFormat
from lexray.storage.imports.documents import COLUMN_NAMES
from lexray.storage.imports.file_names import check_one_series, in_order
from lexray.storage.imports.rows import ImportOptions, Meaning
from lexray.storage.imports.source import SourceFile, SourceFolder
from lexray.storage.imports.stored_tensor import UNNAMED, FileFacts
from lexray.storage.imports.tensor_files import READERS, Opener
from lexray.storage.imports.tensor_series import Part, Series

SEARCH_DEPTH = 4
"""Levels below a subfolder that are searched for misplaced files."""
_CHOOSE_FILES = "add --files rows or --files sites"
_LIST_ITEM = re.compile(r"\[(\d+)\]")


def find_series(
    folder: SourceFolder, new_opener: Callable[[], Opener], options: ImportOptions
) -> tuple[dict[str, Series], bool, list[str]]:
    """Return all series of a folder by name, whether they are paired by name, and notes on content that was skipped.

    Series are paired by the names of their files where each has separate ones. Series that share no file share no
    opener.
    """
    files, ignored = tensor_files(folder, options.raw)
    folders = {inside.name: tensor_files(inside, options.raw) for inside in folder.folders()}
    for inside in folder.folders():
        _check_depth(inside, bool(folders[inside.name][0]), options.raw)
    empty = [name for name, (found, _) in folders.items() if not found]
    folders = {name: found for name, found in folders.items() if found[0]}
    if files and folders:
        raise UserError(
            f"{folder}: {len(files)} tensor files beside {len(folders)} sub-folders of them "
            f"({', '.join(folders)}); keep one kind"
        )
    if not files and not folders:
        raise _nothing(folder, ignored)
    if files:
        found, notes = _side_by_side(folder, files, new_opener(), options)
    else:
        ignored += [file for _, passed in folders.values() for file in passed]
        found, notes = {}, []
        for name, (of_site, _) in folders.items():
            found[name], passed_over = _only_tensors(folder.folder(name), of_site, new_opener(), options)
            notes += passed_over
    names = ", ".join(file.name for file in ignored[:3])
    notes += [f"passed over {len(ignored)} files of other kinds ({names})"] if ignored else []
    notes += [f"passed over {len(empty)} folders without tensor files ({', '.join(empty[:3])})"] if empty else []
    return found, not files, notes


def tensor_files(folder: SourceFolder, raw: RawFormat | None) -> tuple[list[SourceFile], list[SourceFile]]:
    """Return the tensor files directly in a folder, and its other files."""
    suffixes = (*READERS, *(RAW_SUFFIXES if raw else ()))
    files = folder.files()
    return [file for file in files if file.suffix in suffixes], [file for file in files if file.suffix not in suffixes]


def _nothing(folder: SourceFolder, others: Sequence[SourceFile]) -> UserError:
    raw = next((file for file in others if file.suffix in RAW_SUFFIXES), None)
    if raw is not None:
        return UserError(
            f"{raw}: of its {raw.size:,} bytes neither dtype nor width are known; if they are raw numbers, add "
            "--raw-dtype float32 --raw-width WIDTH; if torch.save wrote them, rename the file to .pt"
        )
    held = f"; it holds {', '.join(file.name for file in others[:3])}" if others else ""
    return UserError(
        f"{folder}: no {', '.join(READERS)} or .parquet file there{held}; give the folder that holds them, "
        "or save the rows as .npy"
    )


def _check_depth(folder: SourceFolder, has_files: bool, raw: RawFormat | None) -> None:
    """Raise UserError when files are deeper than in a subfolder of the source."""
    deep = next((found for inside in folder.folders() if (found := _first_file(inside, raw, SEARCH_DEPTH))), None)
    if deep is not None:
        beside = "which already holds tensor files itself" if has_files else "which is no site's folder then"
        raise UserError(
            f"{deep}: lies deeper than in a sub-folder for each site, below {folder}, {beside}; "
            "move the files or give another folder"
        )


def _first_file(folder: SourceFolder, raw: RawFormat | None, depth: int) -> SourceFile | None:
    files, _ = tensor_files(folder, raw)
    if files or not depth:
        return next(iter(files), None)
    return next((found for inside in folder.folders() if (found := _first_file(inside, raw, depth - 1))), None)


def _side_by_side(
    folder: SourceFolder, files: list[SourceFile], open_file: Opener, options: ImportOptions
) -> tuple[dict[str, Series], list[str]]:
    """Return the series of files in one folder: consecutive rows of the same tensors, or one site or column each."""
    files = in_order(files)
    facts = {file: _checked_facts(file, open_file) for file in files}
    columns = [file for file in files if set(facts[file].tensors) == {UNNAMED} and file.stem in COLUMN_NAMES]
    others = [file for file in files if file not in columns]
    if others and options.files is None:
        choice = "add --files sites" if columns else _CHOOSE_FILES
        check_one_series(others, folder, choice)
        if columns and len(others) > 1:
            raise UserError(
                f"{columns[0]}: holds one column beside {len(others)} files of rows; {choice} if each is a site, "
                "else store the column in a sub-folder and the rows in another"
            )
    as_sites = options.files == "sites" or (options.files is None and bool(columns))
    build = _a_site_each if as_sites else _runs_of_rows
    return build(facts, open_file, options), _notes(facts)


def _runs_of_rows(facts: dict[SourceFile, FileFacts], open_file: Opener, options: ImportOptions) -> dict[str, Series]:
    grouped = {file: _grouped(file, found, options.lists) for file, found in facts.items()}
    first = next(iter(grouped))
    common = [name for name in grouped[first] if all(name in groups for groups in grouped.values())]
    for file, groups in grouped.items():
        if groups.keys() != grouped[first].keys() and not (options.names.wanted and common):
            raise UserError(
                f"{file}: holds {_listed(groups)}, but {first.name} holds {_listed(grouped[first])}; "
                "each file needs the same tensors, or choose those that all have by --site"
            )
    parts: dict[str, list[Part]] = {name: [] for name in common}
    for name, (file, groups) in product(common, grouped.items()):
        parts[name] += _parts(file, facts[file], groups[name])
    return {name: Series(parts=found, open_file=open_file) for name, found in parts.items()}


def _parts(file: SourceFile, facts: FileFacts, names: Sequence[str]) -> list[Part]:
    return [Part(file=file, name=name, facts=facts.tensors[name]) for name in names]


def _a_site_each(facts: dict[SourceFile, FileFacts], open_file: Opener, options: ImportOptions) -> dict[str, Series]:
    grouped = {file: _grouped(file, found, options.lists) for file, found in facts.items()}
    names = [name for groups in grouped.values() for name in groups]
    found: dict[str, Series] = {}
    for file, groups in grouped.items():
        for name, keys in groups.items():
            site = file.stem if name == UNNAMED else name if names.count(name) == 1 else f"{file.stem}.{name}"
            if site in found:
                raise UserError(f"{file}: {site} is also in {found[site].parts[0].file.name}; rename one file")
            found[site] = Series(parts=_parts(file, facts[file], keys), open_file=open_file)
    return found


def _only_tensors(
    folder: SourceFolder, files: list[SourceFile], open_file: Opener, options: ImportOptions
) -> tuple[Series, list[str]]:
    """Return the series of the only tensor of each file in a site's folder."""
    if options.files == "sites":
        raise UserError(f"--files: sites, but {folder} is a site's own folder; give it as SOURCE or leave --files out")
    files = in_order(files)
    if options.files is None:
        choice = f"add --files rows, or give {folder} as SOURCE with --files sites"
        check_one_series(files, folder, choice)
    facts = {file: _checked_facts(file, open_file) for file in files}
    parts: list[Part] = []
    called: dict[str, SourceFile] = {}
    for file, found in facts.items():
        groups = _grouped(file, found, options.lists)
        if len(groups) != 1:
            raise UserError(
                f"{file}: holds {_listed(groups)}, expected 1 tensor in a file of a site's own folder; "
                "give that folder as SOURCE or keep one tensor"
            )
        ((name, keys),) = groups.items()
        called.setdefault(name, file)
        parts += _parts(file, found, keys)
    named = [name for name in called if name != UNNAMED]
    if len(named) > 1:
        raise UserError(
            f"{called[named[1]]}: holds {named[1]}, but {called[named[0]].name} holds {named[0]}; "
            "the files of a site's folder hold one tensor, of one name"
        )
    return Series(parts=parts, open_file=open_file), _notes(facts)


def _checked_facts(file: SourceFile, open_file: Opener) -> FileFacts:
    facts = open_file.facts(file)
    if not facts.tensors:
        held = ", ".join(f"{name or 'its content'} is {kind}" for name, kind in list(facts.notes.items())[:3])
        raise UserError(f"{file}: holds no tensor ({held or 'it is empty'}); save a tensor of rows x width")
    return facts


def _grouped(file: SourceFile, facts: FileFacts, lists: Meaning | None) -> dict[str, list[str]]:
    """Return a file's series with the names of their tensors. Raises UserError for lists of unknown meaning."""
    items = [name for name in facts.tensors if _LIST_ITEM.search(name)]
    if items and lists is None:
        raise UserError(
            f"{file}: holds a list of tensors ({', '.join(items[:2])}, ...: {len(items)} in all), which may be runs of "
            "rows of one site or a site each; add --lists rows or --lists sites"
        )
    groups: dict[str, list[str]] = {}
    for name in facts.tensors:
        series = _LIST_ITEM.sub("" if lists == "rows" else r".\1", name).strip(".")
        groups.setdefault(series if name in items else name, []).append(name)
    for series, names in groups.items():
        if len(names) > 1 and (lists != "rows" or any(name not in items for name in names)):
            raise UserError(f"{file}: holds two tensors called {series}; rename one")
    return groups


def _notes(facts: dict[SourceFile, FileFacts]) -> list[str]:
    """Return one line that names all objects in the files that are not tensors."""
    kinds: dict[str, str] = {}
    for found in facts.values():
        kinds |= found.notes
    if not kinds:
        return []
    names = [(name if name.isprintable() else ascii(name)) or "an item" for name in kinds]
    shown = ", ".join(f"{name} ({kind})" for name, kind in list(zip(names, kinds.values(), strict=True))[:6])
    return [f"passed over what is no tensor of numbers in the files: {shown}{', ...' if len(kinds) > 6 else ''}"]


def _listed(found: dict[str, list[str]]) -> str:
    return ", ".join(name or "a tensor without a name" for name in found) or "nothing"
