"""Base of the frozen configurations that are blocks of a user's file as they are: each setting is declared once.

The annotation of a field has its bounds, the docstring below it says what it means; both reach the file's JSON schema.
A value that a program gives is checked like one of a file, with the same words.
"""

from __future__ import annotations

import ast
import inspect
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from textwrap import dedent
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from lexray.storage.errors import UserError

SMALLEST, LARGEST = 1e-15, 1e15
"""Between these, squares and quotients of two settings still are float32 numbers."""
MAX_SECONDS = 1e9
"""Longest span of time in a file: 30 years."""
LIMITS = {
    "gt": ("above", operator.gt),
    "ge": ("at least", operator.ge),
    "lt": ("below", operator.lt),
    "le": ("at most", operator.le),
}
"""Words and meaning of pydantic's bounds."""

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Share that a running mean keeps at each step."""


@dataclass(frozen=True)
class Because:
    """Reason for the bounds of a field, appended to the refusal of a value."""

    text: str


class FileSettings:
    """Base of a frozen dataclass that is a block of a file, too. Unknown keys are refused, and impossible numbers."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    def __post_init__(self) -> None:
        check_values(type(self), vars(self))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(given: Any) -> Any:
            if isinstance(given, Mapping):
                check_values(cls, given)
            return given

        made = handler(source)
        block: dict[str, Any] = handler.resolve_ref_schema(made)  # type: ignore[assignment]
        if block["type"] == "dataclass" and block["schema"]["type"] == "dataclass-args":
            # Inside the block, not around it: where a file has a class twice, references leave out what is around.
            block["schema"] = core_schema.no_info_before_validator_function(check, block["schema"])
        return made

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        made = handler(schema)
        docs = field_docs(cls)
        for name, found in handler.resolve_ref_schema(made)["properties"].items():
            if name in docs:
                found["description"] = docs[name]
        return made


Settings = TypeVar("Settings")


def part_of(config_class: type[Settings], whole: Any, **own: Any) -> Settings:
    """Return the configuration of a base class: the fields of `whole` that it has, and `own` ones."""
    shared = {field.name for field in fields(config_class)} - own.keys()  # type: ignore[arg-type]
    return config_class(**{name: getattr(whole, name) for name in shared if hasattr(whole, name)}, **own)


def check_values(config_class: type, values: Mapping[Any, Any]) -> None:
    """Raise UserError naming the first field whose number or choice the class does not allow."""
    known = _rules(config_class)
    for name, value in values.items():
        if name in known:
            known[name].check(name, value)


@dataclass(frozen=True)
class _Rule:
    """Values that a field may have, beyond their types."""

    kinds: frozenset[Any]
    choices: tuple[Any, ...]
    bounds: tuple[tuple[str, float], ...]
    reason: str

    def check(self, name: str, value: Any) -> None:
        if self.choices and self._is_wrong_choice(value):
            raise UserError(f"{name}: {value!r} is not one of {', '.join(map(str, self.choices))}")
        if isinstance(value, int | float) and not self.choices.count(value):
            check_number(name, value, may_be_bool=bool in self.kinds, is_number=bool(self.kinds & {int, float}))
            self._check_bounds(name, value)
            check_float32(name, value)

    def _is_wrong_choice(self, value: Any) -> bool:
        return (
            not self.kinds
            and isinstance(value, str | int)
            and (type(value), value) not in [(type(choice), choice) for choice in self.choices]
        )

    def _check_bounds(self, name: str, value: float) -> None:
        if not all(LIMITS[bound][1](value, limit) for bound, limit in self.bounds):
            raise UserError(f"{name}: {value} must be {said(self.bounds)}{self.reason}")


def said(bounds: tuple[tuple[str, Any], ...]) -> str:
    """Return bounds in words: `above 0 and at most 10`."""
    return " and ".join(f"{LIMITS[bound][0]} {_short(limit)}" for bound, limit in bounds)


def _short(limit: float) -> str:
    return f"{limit}" if isinstance(limit, int) else f"{limit:g}"


def check_number(name: str, value: float, *, may_be_bool: bool = False, is_number: bool = True) -> None:
    """Raise UserError for `true` where a number belongs, and for a number that has no finite 64 bits."""
    if isinstance(value, bool):
        if is_number and not may_be_bool:
            raise UserError(f"{name}: {str(value).lower()} stands where a number belongs")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{name}: {value} has more than 64 bits")
    elif not math.isfinite(value):
        raise UserError(f"{name}: {value} is not a finite number")


def check_float32(name: str, value: float) -> None:
    """Raise UserError for a number that computations in float32 would make another of."""
    if isinstance(value, float) and value != 0 and not SMALLEST <= abs(value) <= LARGEST:
        bound = f"at least {SMALLEST:g}" if abs(value) < SMALLEST else f"at most {LARGEST:g}"
        raise UserError(f"{name}: {value:g} is out of what float32 can compute with; use {bound}")


@cache
def _rules(config_class: type) -> dict[str, _Rule]:
    hints = get_type_hints(config_class, include_extras=True)
    return {field.name: _rule(hints[field.name]) for field in fields(config_class)}


def _rule(hint: Any) -> _Rule:
    parts = list(_parts(hint))
    kinds = frozenset(part for part in parts if isinstance(part, type) and part is not type(None))
    choices = tuple(value for part in parts if get_origin(part) is Literal for value in get_args(part))
    bounds = [
        (bound, getattr(limit, bound))
        for part in parts
        if isinstance(part, FieldInfo)
        for limit in part.metadata
        for bound in LIMITS
        if hasattr(limit, bound)
    ]
    reasons = [f": {part.text}" for part in parts if isinstance(part, Because)]
    return _Rule(kinds, choices, tuple(bounds), "".join(reasons))


def _parts(hint: Any) -> Iterator[Any]:
    """Yield the types of an annotation, its literals and its metadata."""
    if get_origin(hint) is Annotated:
        kind, *metadata = get_args(hint)
        yield from _parts(kind)
        yield from metadata
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from _parts(part)
    else:
        yield hint


def field_docs(config_class: type) -> dict[str, str]:
    """Return the docstring under each field, the nearest class's own first."""
    docs: dict[str, str] = {}
    for made in reversed(config_class.__mro__[:-1]):
        body = ast.parse(dedent(inspect.getsource(made))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs
