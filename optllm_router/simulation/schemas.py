"""Instances of JSON schemas, as far as structured outputs use them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_DEEPEST = 24
_DEEP_ENOUGH = 4
"""Below this, whatever may be left out is: a schema can contain itself."""
_FORMATS = {
    "date": "2024-05-17",
    "time": "12:30:00Z",
    "date-time": "2024-05-17T12:30:00Z",
    "duration": "PT90M",
    "email": "someone@example.org",
    "hostname": "example.org",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.org/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_MERGED = ("properties", "$defs", "definitions")


class SchemaError(Exception):
    """A schema that has no instance, or none that can be found here."""


def instance(schema: Mapping[str, Any], answer: str = "answer") -> Any:
    """Make an instance of a schema; the same schema always gets the same one.

    Understands types, enumerations, bounds, formats, references into the schema itself and
    alternatives; not ``pattern``, ``not`` or conditions.

    Args:
        schema: JSON schema.
        answer: value of any free text under the name ``answer``; other texts say their name.

    Raises:
        SchemaError: what stands in the way.

    >>> instance({"type": "object", "properties": {"city": {"type": "string"},
    ...           "days": {"type": "array", "items": {"type": "integer", "minimum": 3}}}})
    {'city': 'city', 'days': [3]}
    """
    return _Maker(schema, answer).make(schema, "text", 0)


class _Maker:
    def __init__(self, root: Mapping[str, Any], answer: str) -> None:
        self._root = root
        self._answer = answer

    def make(self, schema: Any, name: str, depth: int) -> Any:
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping) or depth > _DEEPEST:
            raise SchemaError(f"{name!r} is no schema, or goes on for ever")
        schema = self._resolved(schema, name, depth)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][0]
        for unsupported in ("pattern", "not", "if"):
            if unsupported in schema:
                raise SchemaError(f"{unsupported!r} of {name!r} is not understood")
        return self._of_type(_type(schema, deep=depth > _DEEP_ENOUGH), schema, name, depth)

    def _of_type(self, kind: Any, schema: Mapping[str, Any], name: str, depth: int) -> Any:
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind == "string":
            return self._string(schema, name)
        if kind in ("integer", "number"):
            return _number(schema, name, whole=kind == "integer")
        if kind in ("boolean", "null"):
            return True if kind == "boolean" else None
        raise SchemaError(f"{name!r} is of no type: {kind!r}")

    def _resolved(self, schema: Mapping[str, Any], name: str, depth: int) -> Mapping[str, Any]:
        """Follow references, and choose among alternatives: the last one, when it gets deep."""
        for _ in range(_DEEPEST):
            if "$ref" in schema:
                rest = {key: value for key, value in schema.items() if key != "$ref"}
                schema = {**self._target(schema["$ref"]), **rest}
                continue
            word = next((word for word in ("allOf", "anyOf", "oneOf") if schema.get(word)), None)
            if word is None:
                return schema
            parts = schema[word]
            chosen = parts if word == "allOf" else [parts[-1 if depth > _DEEP_ENOUGH else 0]]
            rest = {key: value for key, value in schema.items() if key != word}
            for part in chosen:
                rest = _merged(rest, part)
            schema = rest
        raise SchemaError(f"{name!r} refers to itself")

    def _target(self, reference: Any) -> Mapping[str, Any]:
        place: Any = self._root
        path, _, inside = str(reference).partition("#")
        for step in inside.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            place = place.get(step) if isinstance(place, Mapping) else None
        if path or not isinstance(place, Mapping):
            raise SchemaError(f"{reference!r} leads nowhere")
        return place

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or []
        names = required if depth > _DEEP_ENOUGH else [*properties, *required]
        return {
            name: self.make(properties.get(name, True), name, depth + 1)
            for name in dict.fromkeys(names)
        }

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        first = schema.get("prefixItems") or []
        length = max(int(schema.get("minItems", 0)), len(first))
        if length == 0 and depth <= _DEEP_ENOUGH and schema.get("maxItems", 1) > 0:
            length = 1
        kinds = [*first, *[schema.get("items", True)] * (length - len(first))]
        return [self.make(kind, name, depth + 1) for kind in kinds]

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        if "format" in schema:
            return _FORMATS.get(schema["format"], name)
        text = self._answer if name == "answer" else name
        return text.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]


def _type(schema: Mapping[str, Any], *, deep: bool) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        return "null" if deep and "null" in kind else kind[0] if kind else None
    if kind is None:
        if "properties" in schema:
            return "object"
        return "array" if "items" in schema else "string"
    return kind


def _merged(one: Mapping[str, Any], other: Any) -> dict[str, Any]:
    if not isinstance(other, Mapping):
        raise SchemaError("an alternative is no schema")
    both = {**one, **other}
    for name in _MERGED:
        if name in one and name in other:
            both[name] = {**one[name], **other[name]}
    if "required" in one and "required" in other:
        both["required"] = [*one["required"], *other["required"]]
    return both


def _number(schema: Mapping[str, Any], name: str, *, whole: bool) -> float:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    over, under = (
        schema.get("exclusiveMinimum", -math.inf),
        schema.get("exclusiveMaximum", math.inf),
    )
    least, most = max(low, over), min(high, under)
    step = schema.get("multipleOf") or (1 if whole else 0.5)
    multiple = math.ceil((least if math.isfinite(least) else min(1, most)) / step)
    tried = [multiple * step, (multiple + 1) * step, (multiple - 1) * step]
    if not whole:
        tried.append((least + most) / 2)
    for number in tried:
        if low <= number <= high and over < number < under:
            return float(number) if isinstance(number, float) else int(number)
    raise SchemaError(f"no number fits the bounds of {name!r}")
