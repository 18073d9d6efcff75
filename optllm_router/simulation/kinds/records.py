"""One value looked up in a JSON record; harder when it lies deeper and the record is larger."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from optllm_router.simulation.kinds.kind import Blanks, Kind, between, scaled

if TYPE_CHECKING:
    import numpy as np

_SECTIONS = (
    "customer", "order", "shipping", "billing", "address", "contact", "account", "items",
    "meta", "payment", "device", "session",
)  # fmt: skip
_FIELDS = (
    "id", "status", "name", "city", "email", "reference", "owner", "region", "plan", "label",
    "source", "channel",
)  # fmt: skip
_VALUES = (
    "open", "closed", "pending", "Lisbon", "Oslo", "Nairobi", "Kyoto", "Lima", "Marta", "Jonas",
    "Aisha", "Pavel", "premium", "basic", "north", "south", "web", "mobile", "invoice",
    "express", "standard", "archived",
)  # fmt: skip
_MAX_DEPTH = 4
_FEWEST_LEAVES, _MOST_LEAVES = 3, 24


def _draw(difficulty: float, rng: np.random.Generator) -> dict[str, str]:
    depth = between(1, _MAX_DEPTH, difficulty)
    record = _draw_section(rng, 3)
    path: list[str] = []
    section = record
    for _ in range(depth - 1):
        name = _pick(_SECTIONS, rng)
        section[name] = _draw_section(rng, 2)
        section = section[name]
        path.append(name)
    path.append(_pick(list(section), rng))
    _pad(record, between(_FEWEST_LEAVES, _MOST_LEAVES, difficulty), rng)
    indent = 2 if rng.random() < 0.3 else None
    return {"record": json.dumps(record, indent=indent), "path": ".".join(path)}


def _pick(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _draw_section(rng: np.random.Generator, size: int) -> dict[str, Any]:
    fields = rng.choice(len(_FIELDS), size=size, replace=False)
    return {_FIELDS[field]: _draw_value(rng) for field in fields}


def _draw_value(rng: np.random.Generator) -> str:
    word = _pick(_VALUES, rng)
    return word if rng.random() < 0.5 else f"{word}-{rng.integers(100, 10_000)}"


def _pad(record: dict[str, Any], leaves: int, rng: np.random.Generator) -> None:
    """Add sections that nobody asks for, until the record has about ``leaves`` values."""
    free = [name for name in _SECTIONS if name not in record]
    missing = leaves - len(list(_leaves(record)))
    while missing > 0 and free:
        size = min(missing, int(rng.integers(2, 5)))
        record[free.pop(rng.integers(len(free)))] = _draw_section(rng, size)
        missing -= size


def _leaves(record: Any) -> Iterator[str]:
    if isinstance(record, dict):
        for value in record.values():
            yield from _leaves(value)
    elif isinstance(record, list):
        for value in record:
            yield from _leaves(value)
    else:
        yield str(record)


def _solve(blanks: Blanks) -> str:
    value = json.loads(blanks["record"])
    for name in blanks["path"].split("."):
        if not isinstance(value, dict):
            raise LookupError(f"no {name!r} in the record")
        value = value[name]
    if isinstance(value, (dict, list)):
        raise LookupError(f"{blanks['path']!r} is not a single value")
    return str(value)


def _difficulty(blanks: Blanks) -> float:
    depth = blanks["path"].count(".") + 1
    leaves = len(list(_leaves(json.loads(blanks["record"]))))
    return (scaled(depth, 1, _MAX_DEPTH) + scaled(leaves, _FEWEST_LEAVES, _MOST_LEAVES)) / 2


def _mistakes(blanks: Blanks, right: str) -> Sequence[str]:
    # Another value of the record is the usual slip; the key itself is there in any case.
    return [*_leaves(json.loads(blanks["record"])), blanks["path"], "null"]


RECORDS = Kind(
    name="records",
    templates=(
        "Extract `{path}` from this JSON and reply with the value only:\n{record}",
        "Here is the payload our webhook received:\n\n{record}\n\nWhat is `{path}`?",
        "Given {record}, return the value at `{path}`.",
        "```json\n{record}\n```\nRead out the field `{path}` for me.",
        "Parse the record below and tell me `{path}`.\n\n{record}",
        "API response: {record}\nPlease give me only `{path}`.",
    ),
    patterns={"record": r"\{.*\}", "path": r"[A-Za-z_]+(?:\.[A-Za-z_]+)*"},
    draw=_draw,
    solve=_solve,
    difficulty=_difficulty,
    mistakes=_mistakes,
    same=str.__eq__,
)
