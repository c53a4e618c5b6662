"""Read YAML as people mean it: the plain values of YAML 1.2, no tags, aliases that stay small, mistakes named by line.

YAML 1.1, which PyYAML reads by itself, takes `032` for 26, `1:40` for 100, `on` and `no` for truth values, `1e5` for a
text and `2030-01-31` for a date; it lets the last of two equal keys win, makes objects of any tag, and a page of
aliases can stand for more values than there is memory. Here `032` is 32, `1e5` is a number, `1_000` stays 1000, `0x10`
is 16, and the others are texts, which the field that they stand for takes or refuses.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_VALUES = 20_000
"""Values of a document at most, those that aliases repeat counted again."""
MAX_DEPTH = 32
"""Lists and mappings that may lie inside each other."""
MAX_DIGITS = 19
"""Digits of a whole number at most."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)$"), "~nN\0"),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    "int": (re.compile(r"(?:[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+)$"), "-+0123456789"),
    "float": (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+.0123456789",
    ),
    "merge": (re.compile(r"<<$"), "<"),
}
"""Of plain scalars: how a value of each kind is written, and by what it can begin."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def load_yaml(text: str) -> Any:
    """The one document in `text`. Raises yaml.YAMLError, whose text names the line."""
    try:
        return yaml.load(text, _Loader)
    except (ValueError, OverflowError) as error:  # an escape of a character that does not exist
        raise yaml.YAMLError(str(error)) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with other plain values, and bounds."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own name)

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._composed = 0
        self._sizes: dict[int, int] = {}
        """Values of each node that is composed, by its identity."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        mark = event.start_mark
        self._depth += 1
        self._composed += 1
        if self._depth > MAX_DEPTH:
            raise _mistake(mark, f"lists and mappings are nested more than {MAX_DEPTH} deep")
        if self._composed > MAX_VALUES:
            raise _mistake(mark, f"is beyond the first {MAX_VALUES:,} values, which are as many as are read")
        is_alias = self.check_event(yaml.AliasEvent)
        plain_tags = (None, "!", f"{_TAG}str") if self.check_event(yaml.ScalarEvent) else (None, "!")
        if not is_alias and event.tag not in plain_tags:
            raise _mistake(mark, f"the tag {event.tag!r} is not read; write the plain value")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise _mistake(mark, "an alias stands inside what it repeats")
        if not is_alias:
            self._sizes[id(node)] = self._size(node)
        if self._sizes[id(node)] > MAX_VALUES:
            raise _mistake(mark, f"holds more than {MAX_VALUES:,} values, repeated ones counted again")
        return node

    def _size(self, node: yaml.Node | None) -> int:
        if not isinstance(node, yaml.CollectionNode):
            return 1
        inner = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        return 1 + sum(self._sizes[id(one)] for one in inner)

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        event = self.peek_event()
        if _SURROGATE.search(event.value):  # JSON writes characters beyond 16 bits as two escapes
            try:
                event.value = event.value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
            except UnicodeDecodeError:
                raise _mistake(event.start_mark, "holds half a character (a lone surrogate)") from None
        return super().compose_scalar_node(anchor)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _mistake(key.start_mark, "a key is a list or a mapping; give it a name")
            if key.value in seen:
                raise _mistake(key.start_mark, f"{key.value!r} stands twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        digits = node.value.replace("_", "")
        if len(digits.lstrip("+-")) > MAX_DIGITS:
            raise _mistake(node.start_mark, f"a number has more than {MAX_DIGITS} digits")
        based = digits[:2] in ("0x", "0o")
        return int(digits, 0) if based else int(digits)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        text = node.value.replace("_", "").lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


for _name, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, list(_first.replace("\0", "")))
_Loader.yaml_implicit_resolvers[""] = [(f"{_TAG}null", _PLAIN["null"][0])]
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_whole)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_number)


def _mistake(mark: yaml.Mark, what: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"line {mark.line + 1}: {what}")
