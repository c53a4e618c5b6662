"""Read a YAML file into a pydantic model, reporting each error in one line."""

from __future__ import annotations

import difflib
import json
import math
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from lexray.storage.documents import shortened
from lexray.storage.errors import UserError
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.yaml_values import load_yaml

MAX_BYTES = 256 * 1024
"""Maximum bytes of a settings file."""
MAX_MESSAGE_CHARACTERS = 600
"""Maximum characters of a library's message, which may repeat a foreign value."""
MAX_SECONDS = 1e9
"""Maximum duration in a file: 30 years."""
SMALLEST, LARGEST = 1e-15, 1e15
"""Range of numbers whose squares and quotients are still float32 numbers."""


class FileModel(BaseModel):
    """Base of all models of user YAML: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, given: Any) -> Any:
        """Refuse booleans for numbers and integers beyond 64 bits."""
        for name, value in given.items() if isinstance(given, dict) else ():
            annotation = cls.model_fields[name].annotation if name in cls.model_fields else None
            kinds = {annotation, *get_args(annotation)}
            if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
                raise ValueError(f"{name}: {str(value).lower()} stands where a number belongs")
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError(f"{name}: {value} has more than 64 bits")
        return given


class StorageBlock(FileModel):
    """Connection settings of an object store; credentials come from the provider's own chain."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    options: dict[str, JsonValue] = {}
    retry_budget_s: float | None = Field(default=None, ge=0, le=MAX_SECONDS)

    @property
    def settings(self) -> StorageSettings:
        return StorageSettings(**self.model_dump() | {"options": json.dumps(self.options, sort_keys=True)})


Model = TypeVar("Model", bound=FileModel)


def read_config_file(path: str, model: type[Model]) -> Model:
    """Read the file as `model`. Raises UserError naming the file and the first wrong field."""
    return checked_content(path, read_mapping(path), model)


def read_mapping(path: str) -> dict[Any, Any]:
    """Read a YAML or JSON file of keys and values. Raises UserError naming the file."""
    return mapping_of(read_text(path), path)


def read_text(path: str) -> str:
    """Read the text of a file of at most `MAX_BYTES`, in UTF-8. Raises UserError naming the file."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
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
    try:
        content = load_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({shortened(' '.join(str(error).split()), 300)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no settings; expected `key: value` lines")
    return content


def checked_content(path: str, content: dict[Any, Any], model: type[Model]) -> Model:
    """Validate the content of a file as `model`. Raises UserError naming the file and the first wrong field."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, model)}") from error


def checked_block(block: Model, changes: dict[str, Any]) -> Model:
    """Return a block of a file with some of its values replaced, validated again. Raises UserError."""
    try:
        return type(block).model_validate(block.model_dump() | changes)
    except ValidationError as error:
        raise UserError(describe(error, type(block))) from error


Config = TypeVar("Config")


def checked_config(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Build a configuration dataclass with its fields' types checked. Raises UserError naming the first wrong field."""
    for name, value in values.items():
        _check_number(name, value)
    return typed_config(config_class, values)


def typed_config(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Build one from values that were checked when written: only their types are checked."""
    try:
        found = TypeAdapter(config_class).validate_python(values)
    except ValidationError as error:
        raise UserError(describe(error)) from error
    for name, value in values.items():
        if isinstance(value, bool) and not isinstance(getattr(found, name), bool):
            raise UserError(f"{name}: {str(value).lower()} stands where a number belongs")
    return found


def _check_number(name: str, value: Any) -> None:
    """Raise UserError for a number that float32 or 64-bit integers cannot represent."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: {value} is not a finite number")
    if isinstance(value, float) and value != 0 and not SMALLEST <= abs(value) <= LARGEST:
        bound = f"at least {SMALLEST:g}" if abs(value) < SMALLEST else f"at most {LARGEST:g}"
        raise UserError(f"{name}: {value:g} is out of what float32 can compute with; use {bound}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{name}: {value} has more than 64 bits")


def describe(error: ValidationError, model: type[BaseModel] = FileModel) -> str:
    """Return the first mistake of a validation error in one line; an unknown key with the nearest known one."""
    errors = error.errors()
    unknown = [e for e in errors if e["type"] == "extra_forbidden"]  # often the reason why another key is missing
    first = (unknown or errors)[0]
    where = shortened(" ".join(".".join(str(part) for part in first["loc"]).split()))
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"][:-1])
        return f"{where}: unknown key{nearest(str(first['loc'][-1]), known)}"
    if first["type"] == "missing":
        return f"{where}: required, but not given"
    message = shortened(first["msg"].removeprefix("Value error, "), MAX_MESSAGE_CHARACTERS)
    message = message[0].lower() + message[1:]
    given = first.get("input")
    shown = f", got {shortened(repr(given))}" if isinstance(given, str | int | float | bool | None) and where else ""
    return f"{where}: {message}{shown}" if where else message


def nearest(name: str, known: list[str]) -> str:
    """Return `; did you mean 'x'?` or the list of known names."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the (nested) model at `location`."""
    for part in location:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return [found.alias or name for name, found in model.model_fields.items()]
