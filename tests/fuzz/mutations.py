"""Damaged and hostile variants of a valid document, drawn from a seed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

NESTED: Any = None
for _ in range(200):
    NESTED = [NESTED]
HOSTILE: tuple[Any, ...] = (
    None, True, False, "", " ", 0, 1, -1, 2, 0.5, -0.5, 1e-320, 1e308, float("nan"), float("inf"), 2**31, 2**53, 2**63,
    10**18, 10**400, -(10**18), "0", "-1", "nan", "1e9", "../x", "/dev/zero", "a/../../b", "x" * 300, "x" * 100_000,
    "\x00", "\x1b]0;title\x07", "\x1b[2J", "\r", "a\nb", "\u202e", "\udc80", "é", "=1+1", "[red]", "*", "[a]?", [], {},
    [[]], [None], {"": None}, {"a": {"b": {}}}, [0] * 1000, ["x"] * 1000, NESTED,
)  # fmt: skip
"""Values that readers are known to stumble over, put in the place of any other."""
MAX_NESTING = 100_000
MAX_EDIT_DEPTH = 20


def mutated_json(valid: bytes, random: Random) -> bytes:
    """Return a JSON document with one to three of its values, keys or bytes changed."""
    if random.random() < 0.25:
        return mutated_bytes(valid, random)
    try:
        content = json.loads(valid)
    except (ValueError, RecursionError):  # a line that was mutated before
        return mutated_bytes(valid, random)
    for _ in range(random.randint(1, 3)):
        content = random.choice((_replaced, _replaced, _replaced, _removed, _added, _scaled))(content, random)
    try:
        return json.dumps(content).encode(errors="surrogatepass")
    except (ValueError, RecursionError):
        return mutated_bytes(valid, random)


def mutated_lines(valid: bytes, random: Random) -> bytes:
    """Return JSON lines of which some were mutated, repeated, or cut."""
    lines = valid.splitlines()
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(lines))
        changed = mutated_json(lines[place], random) if lines[place].strip() else b"{}"
        lines[place] = random.choice((changed, changed, b"", lines[0], b"null", b"[]", changed[: len(changed) // 2]))
    return b"\n".join(lines)


def mutated_text(valid: bytes, random: Random) -> bytes:
    """Return a YAML document with a scalar replaced, a line repeated or moved, or bytes changed."""
    if random.random() < 0.3:
        return mutated_bytes(valid, random)
    lines = valid.decode().splitlines()
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(lines))
        head, colon, _ = lines[place].partition(":")
        value = random.choice((*YAML_VALUES, json.dumps(_hostile(random))))
        lines[place] = random.choice((f"{head}{colon} {value}", f"  {lines[place]}", "", f"{lines[place]}\n{lines[0]}"))
    return "\n".join(lines).encode(errors="surrogatepass")


def mutated_safetensors(valid: bytes, random: Random) -> bytes:
    """Return a safetensors file whose header was mutated; its length field may lie."""
    length = int.from_bytes(valid[:8], "little")
    header, body = mutated_json(valid[8 : 8 + length], random), valid[8 + length :]
    said = random.choice((len(header),) * 6 + (0, len(header) + 1, 2**40, 2**63))
    return said.to_bytes(8, "little") + header + (body if random.random() < 0.8 else body[: len(body) // 2])


def mutated_bytes(valid: bytes, random: Random) -> bytes:
    """Return the bytes cut, repeated, overwritten, or wrapped."""
    place = random.randrange(len(valid) + 1)
    noise = random.randbytes(random.randint(1, 8))
    depth = random.choice((10, 1000, MAX_NESTING))
    options: tuple[Callable[[], bytes], ...] = (
        lambda: valid[:place],
        lambda: valid[:place] + noise + valid[place:],
        lambda: valid[:place] + noise + valid[place + len(noise) :],
        lambda: valid + valid,
        lambda: b"\xef\xbb\xbf" + valid,
        lambda: b"[" * depth + valid,
        lambda: b'{"a":' * depth,
        lambda: valid.replace(b":", b"=", 1),
        lambda: valid.decode(errors="replace").encode("utf-16"),
        lambda: b"",
        lambda: b"\x00" * 256,
        lambda: valid.replace(b"1", b"9" * 4400, 1),
    )
    return random.choice(options)()


ALIASES = "".join(f"a{n}: &a{n} [*a{n - 1},*a{n - 1},*a{n - 1}]\n" if n else "a0: &a0 [x]\n" for n in range(40))
YAML_VALUES = (
    "032", "1:40", "0x1F", "1_000", "on", "no", "~", "1e5", ".inf", ".nan", "!!python/object/apply:os.system [true]",
    "&a [*a]", "*nowhere", "{a: 1, a: 2}", "<<: {}", "2001-01-01", "|", "'", '"', "\t", "@", "%TAG", "---", "...",
    "!!binary x", "!!set {a}", "[" * 3000, "{" * 3000, f"\n{ALIASES}",
)  # fmt: skip
"""YAML that means something else than it looks like, or costs far more to read than to write."""


def _hostile(random: Random) -> Any:
    """Return one of `HOSTILE`, a copy: what is put into a document is changed by the next mutation of it."""
    return copy.deepcopy(random.choice(HOSTILE))


def _paths(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if len(path) > MAX_EDIT_DEPTH:
        return []
    children = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    found = [path] if path else []
    for key, child in children:
        found += _paths(child, (*path, key))
    return found


def _edit(content: Any, random: Random, change: Callable[[Any, Any], None]) -> Any:
    """Apply `change(container, key)` at a random path."""
    paths = _paths(content)
    if not paths:
        return _hostile(random)
    path = random.choice(paths[:4000])
    container = content
    for key in path[:-1]:
        container = container[key]
    change(container, path[-1])
    return content


def _replaced(content: Any, random: Random) -> Any:
    return _edit(content, random, lambda container, key: container.__setitem__(key, _hostile(random)))


def _removed(content: Any, random: Random) -> Any:
    return _edit(content, random, lambda container, key: container.__delitem__(key))


def _added(content: Any, random: Random) -> Any:
    def add(container: Any, key: Any) -> None:
        if isinstance(container, dict):
            container[random.choice(("", "x", "__class__", "../x", str(key) + "s"))] = _hostile(random)
        else:
            container.insert(key, random.choice((_hostile(random), container[key])))

    return _edit(content, random, add)


def _scaled(content: Any, random: Random) -> Any:
    """Make a number larger, smaller, negative or a string of itself."""

    def scale(container: Any, key: Any) -> None:
        value = container[key]
        if isinstance(value, int | float) and not isinstance(value, bool):
            container[key] = random.choice(
                (value * 10**9, -value, value + 1, value - 1, value // 2, str(value), [value])
            )

    return _edit(content, random, scale)
