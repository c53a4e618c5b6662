"""Read a YAML file into a pydantic model, reporting each error in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from lexray.storage.documents import MAX_MESSAGE, shortened
from lexray.storage.errors import UserError, as_user_error
from lexray.storage.file_settings import LIMITS, check_float32, check_number, check_values, said
from lexray.storage.yaml_values import load_yaml

MAX_BYTES = 256 * 1024
"""Maximum bytes of a settings file."""
PATH = "path"
"""Key of a file's path in the context that its model is validated in."""


class FileModel(BaseModel):
    """Base of all models of user YAML: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, given: Any) -> Any:
        """Refuse booleans for numbers and integers beyond 64 bits."""
        for name, value in given.items() if isinstance(given, dict) else ():
            if isinstance(value, int):
                annotation = cls.model_fields[name].annotation if name in cls.model_fields else None
                kinds = {annotation, *get_args(annotation)}
                check_number(name, value, may_be_bool=bool in kinds, is_number=bool(kinds & {int, float}))
        return given


Model = TypeVar("Model", bound=FileModel)
Block = TypeVar("Block")


def read_config_file(path: str, model: type[Model]) -> Model:
    """Read the file as `model`. Raises UserError naming the file and the first wrong field."""
    return checked_content(path, read_mapping(path), model)


def read_mapping(path: str) -> dict[Any, Any]:
    """Read a YAML or JSON file of keys and values. Raises UserError naming the file."""
    return mapping_of(read_text(path), path)


def read_text(path: str) -> str:
    """Read the text of a file of at most `MAX_BYTES`, in UTF-8. Raises UserError naming the file."""
    missing = as_user_error(lambda _: f"{path}: no such file", FileNotFoundError)
    unreadable = as_user_error(lambda error: f"{path}: cannot be read ({error})", OSError, ValueError)
    with unreadable, missing, open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES:,} bytes, which no settings have; is it another file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: byte {content[error.start]:#x} is not UTF-8; save it as that") from error


def mapping_of(text: str, path: str) -> dict[Any, Any]:
    """Parse text that was read from `path`, like `read_mapping`."""
    if len(text) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES:,} characters, which no settings have; is it another file?")

    def message(error: yaml.YAMLError) -> str:
        return f"{path}: not valid YAML ({shortened(' '.join(str(error).split()), 300)})"

    with as_user_error(message, yaml.YAMLError):
        content = load_yaml(text)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no settings; expected `key: value` lines")
    return content


def checked_content(path: str, content: dict[Any, Any], model: type[Model]) -> Model:
    """Validate the content of a file as `model`. Raises UserError naming the file and the first wrong field."""
    with _described(model, f"{path}: "):
        return model.model_validate(content, context={PATH: path})


def checked_block(block: Block, changes: dict[str, Any]) -> Block:
    """Return a block of a file with some of its values replaced, validated again. Raises UserError."""
    values = {field.name: getattr(block, field.name) for field in fields(block)}  # type: ignore[arg-type]
    return checked_config(type(block), values | changes)


def checked_config(config_class: type[Block], values: dict[str, Any]) -> Block:
    """Build a configuration dataclass with its fields' types checked. Raises UserError naming the first wrong field."""
    check_values(config_class, values)
    for name, value in values.items():
        if isinstance(value, float):
            check_float32(name, value)
    with _described(config_class):
        made: Block = _adapter(config_class).validate_python(values)  # type: ignore[arg-type]  # classes are hashable
        return made


def _described(model: type, place: str = "") -> AbstractContextManager[None]:
    """Turn a ValidationError into a UserError in one line."""
    return as_user_error(lambda error: f"{place}{describe(error, model)}", ValidationError)


@cache
def _adapter(config_class: type) -> TypeAdapter[Any]:
    """Return the validator of a class: making one takes many times as long as using it."""
    return TypeAdapter(config_class)


def recorded(config_class: type[Block], values: dict[str, Any]) -> Block:
    """Build one from values that another version of lexray may have written, without fields that it alone has."""
    known = {field.name for field in fields(config_class)}  # type: ignore[arg-type]
    return checked_config(config_class, {name: value for name, value in values.items() if name in known})


def describe(error: ValidationError, model: type = FileModel) -> str:
    """Return the first mistake of a validation error in one line; an unknown key with the nearest known one."""
    errors = error.errors()
    unknown = [e for e in errors if e["type"] in _UNKNOWN_KEY]  # often the reason why another key is missing
    first = (unknown or errors)[0]
    path, known = _locate(first["loc"], model)
    where = shortened(" ".join(".".join(path).split()))
    if unknown:
        return f"{where}: unknown key{nearest(path[-1], known)}"
    if first["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{where}: required, but not given"
    given = first.get("input")
    if bounds := tuple((name, limit) for name, limit in first.get("ctx", {}).items() if name in LIMITS):
        return f"{where}: {shortened(repr(given))} must be {said(bounds)}"
    message = shortened(first["msg"].removeprefix("Value error, "), MAX_MESSAGE)
    if isinstance(first.get("ctx", {}).get("error"), UserError):
        return f"{where}.{message}" if where else message  # begins with the name of a field
    message = message[0].lower() + message[1:]
    shown = f", got {shortened(repr(given))}" if isinstance(given, str | int | float | bool | None) and where else ""
    return f"{where}: {message}{shown}" if where else message


_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def _locate(location: tuple[int | str, ...], model: type) -> tuple[list[str], list[str]]:
    """Return where a mistake is in a file: keys and numbers of entries, and the keys that the innermost block has.

    Alternatives of unions, which pydantic names among them, are left out.
    """
    path: list[str] = []
    block: dict[str, Any] = {}
    kinds: list[Any] = [model]
    is_chosen = True
    for part in location:
        if not is_chosen and len(kinds) > 1:
            is_chosen = True  # pydantic names the alternative of a union before what is wrong inside it
            continue
        path.append(str(part))
        blocks = [_fields_of(kind) for kind in kinds]
        block = next((found for found in blocks if part in found), next(filter(None, blocks), {}))
        inside = [block[str(part)]] if part in block else [_item_of(kind) for kind in kinds if get_args(kind)]
        kinds, is_chosen = [option for kind in inside for option in _options(kind)], False
    return path, list(block)


def nearest(name: str, known: list[str]) -> str:
    """Return `; did you mean 'x'?` or the list of known names."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def _options(annotation: Any) -> Iterator[Any]:
    """Yield the alternatives of an annotation, without None."""
    if get_origin(annotation) is Annotated:
        yield from _options(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for option in get_args(annotation):
            yield from _options(option)
    elif annotation is not type(None):
        yield annotation


def _item_of(kind: Any) -> Any:
    """Return the annotation of an entry of a list, tuple or mapping."""
    return [inside for inside in get_args(kind) if inside is not Ellipsis][-1]


def _fields_of(kind: Any) -> dict[str, Any]:
    """Return annotation by key of a block of a file; empty for anything else."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {found.alias or name: found.annotation for name, found in kind.model_fields.items()}
    return get_type_hints(kind, include_extras=True) if is_dataclass(kind) and isinstance(kind, type) else {}
