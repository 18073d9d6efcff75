"""The messages of a call: what they must look like, and what cannot be priced in them."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from optllm_router._arguments import check_json, is_list, is_tool_call, refuse_unbounded
from optllm_router._errors import InvalidRequestError
from optllm_router._nearest import quoted
from optllm_router._types import Messages
from optllm_router.pricing import sound_fault

_MOST_MESSAGES = 10_000
_MOST_SOUND = 20_000_000
"""Characters of base64 in one conversation; 15 MB."""
_PARTS = ("text", "image_url", "input_audio", "refusal")
_DETAILS = (None, "auto", "low", "high")
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def checked_messages(messages: Any) -> Messages:
    """The messages as plain values.

    Raises:
        InvalidRequestError: names the message, what is wrong with it and the remedy.
    """
    if isinstance(messages, Iterator):
        messages = list(messages)
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        what = "missing" if messages is None else type(messages).__name__
        raise InvalidRequestError(
            f"messages is {what}; pass a list, like [{{'role': 'user', 'content': 'Hello'}}]",
            param="messages",
        )
    if not 1 <= len(messages) <= _MOST_MESSAGES:
        raise InvalidRequestError(
            f"messages has {len(messages)} entries; between 1 and {_MOST_MESSAGES} are taken",
            param="messages",
        )
    plain = tuple(map(_as_mapping, messages))
    for position, message in enumerate(plain):
        _check_message(f"messages[{position}]", message)
    size = sum(map(_sound_size, plain))
    if size > _MOST_SOUND:
        raise InvalidRequestError(
            f"the messages hold {size} characters of sound; at most {_MOST_SOUND} are taken",
            param="messages",
        )
    return plain


def _as_mapping(message: Any) -> Any:
    """An earlier answer's message, which OpenAI's users append as it came, as plain values."""
    if not hasattr(message, "model_dump"):
        return message
    fields = message.model_dump(exclude_none=True)
    fields.pop("provider_specific_fields", None)
    return fields


def _check_message(where: str, message: Any) -> None:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in _ROLES:
        raise InvalidRequestError(
            f"{where} has role {quoted(role)}; use one of {', '.join(_ROLES)}",
            param=f"{where}.role",
        )
    content = message.get("content")
    if content is None and role not in ("assistant", "function"):
        raise InvalidRequestError(
            f"{where} of role {role!r} has no content; give it text", param=f"{where}.content"
        )
    if not isinstance(content, (str, list, tuple, type(None))):
        raise InvalidRequestError(
            f"{where}.content must be text or a list of parts, not {type(content).__name__}",
            param=f"{where}.content",
        )
    if isinstance(content, (list, tuple)):
        _check_parts(where, role, content)
    needed = {"tool": "tool_call_id", "function": "name"}.get(role)
    for key in ("name", "tool_call_id"):
        value = message.get(key)
        if not isinstance(value, str) and (value is not None or key == needed):
            raise InvalidRequestError(
                f"{where}.{key} must be text, not {type(value).__name__}", param=f"{where}.{key}"
            )
    calls = message.get("tool_calls")
    if calls is not None and not (is_list(calls) and all(map(is_tool_call, calls))):
        raise InvalidRequestError(
            f"{where}.tool_calls must be a list like [{{'id': ..., 'type': 'function', "
            "'function': {'name': ..., 'arguments': '{}'}}]",
            param=f"{where}.tool_calls",
        )
    made = message.get("function_call")
    if made is not None and not is_tool_call({"function": made}):
        raise InvalidRequestError(
            f"{where}.function_call must be like {{'name': ..., 'arguments': '{{}}'}}",
            param=f"{where}.function_call",
        )
    refuse_unbounded(where, message)
    check_json(where, message)


def _check_parts(where: str, role: str, content: Sequence[Any]) -> None:
    for position, part in enumerate(content):
        try:
            _check_part(where, part)
            if part["type"] == "refusal" and role != "assistant":
                raise InvalidRequestError(
                    f"{where} of role {role!r} has a refusal; only answers have"
                )
        except InvalidRequestError as error:
            error.param = f"{where}.content[{position}]"
            raise


def _check_part(where: str, part: Any) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in _PARTS:
        raise InvalidRequestError(
            f"{where} has a part of type {quoted(kind)}, whose cost cannot be bounded yet; use "
            f"{', '.join(_PARTS)}"
        )
    refuse_unbounded(where, part)
    if kind == "image_url":
        _check_image(where, part)
    elif kind == "input_audio":
        _check_sound(where, part)
    elif not isinstance(part.get(kind), str):
        raise InvalidRequestError(f"{where} has a part whose {kind} is not text")


def _check_image(where: str, part: Mapping[str, Any]) -> None:
    """An image is priced as one, whatever its size: nothing else may go by its name."""
    image = part.get("image_url")
    if not isinstance(image, Mapping) or not isinstance(image.get("url"), str):
        raise InvalidRequestError(
            f"{where} has a part whose image_url is not {{'url': 'https://...'}}"
        )
    for name in [*(part.keys() - {"type", "image_url"}), *(image.keys() - {"url", "detail"})]:
        raise InvalidRequestError(f"{where} has an image with {quoted(name)}; leave it out")
    if image.get("detail") not in _DETAILS:
        raise InvalidRequestError(f"{where} has an image whose detail is none of low, high, auto")
    if not _is_image(image["url"]):
        raise InvalidRequestError(
            f"{where} has an image_url that is neither data:image/... nor http(s)://... of an "
            "image; other files have no bound on their cost yet"
        )


def _check_sound(where: str, part: Mapping[str, Any]) -> None:
    for name in part.keys() - {"type", "input_audio"}:
        raise InvalidRequestError(f"{where} has a sound with {quoted(name)}; leave it out")
    if fault := sound_fault(part.get("input_audio")):
        raise InvalidRequestError(f"{where} has a part whose input_audio {fault}")


def _sound_size(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    parts = content if isinstance(content, (list, tuple)) else ()
    return sum(len(part["input_audio"]["data"]) for part in parts if part["type"] == "input_audio")


def _is_image(url: str) -> bool:
    """Whether providers will take this for an image, as far as can be told without asking.

    litellm sends PDFs and videos in the same way, and has Google read ``gs://``, wherever that
    stands, with the router's own credentials.
    """
    if url[:5].lower() == "data:":
        return url[5:11].lower() == "image/"
    try:
        split = urlsplit(url)
    except ValueError:
        return False
    kind, _ = mimetypes.guess_type(split.path)
    remote = split.scheme in ("http", "https") and bool(split.netloc) and "gs://" not in url
    return remote and (kind is None or kind.startswith("image/"))
