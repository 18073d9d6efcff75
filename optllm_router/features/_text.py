"""From a conversation to the text that is featurised: what a person asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optllm_router._types import Messages

_EARLIER_CHARACTERS = 400
_SHORT_CHARACTERS = 80
_EARLIER_OF_SHORT = 1_600
"""What is asked in a few words ("commit it") is asked in the earlier turns."""
_SYSTEM_CHARACTERS = 160


def query_text(messages: Messages) -> str:
    """What a person asked: the last user turn, then compactly what it follows on.

    A first question is returned as it stands, so that it is featurised like any other text. A
    follow-up ("and in Spanish?") keeps the end of the earlier user turns, and more of them the less
    it says itself: "commit it" is as hard as what is to be committed. System prompts, tools'
    output and answers are the harness's words, not the person's: of these only the shape is
    kept (how many turns, whether tools or images are involved) and the system prompt's opening,
    which names the task.

    Args:
        messages: an OpenAI conversation; ``content`` may be a string, None or a list of parts.

    Examples:
        >>> query_text([{"role": "user", "content": "What is 2 + 2?"}])
        'What is 2 + 2?'
        >>> print(query_text([
        ...     {"role": "user", "content": "Translate 'cat' to French."},
        ...     {"role": "assistant", "content": "chat"},
        ...     {"role": "user", "content": "And to Spanish?"},
        ... ]))
        And to Spanish?
        [turns 2]
        [earlier] Translate 'cat' to French.
    """
    turns = [_content_text(m.get("content")) for m in messages if m.get("role") == "user"]
    asked = turns[-1] if turns else ""
    lines = [asked, *_shape(messages, len(turns))]
    earlier = "\n".join(turn for turn in turns[:-1] if turn)
    if earlier:
        kept = _EARLIER_OF_SHORT if len(asked) <= _SHORT_CHARACTERS else _EARLIER_CHARACTERS
        lines.append(f"[earlier] {earlier[-kept:]}")
    system = _system_text(messages)
    if system:
        lines.append(f"[system] {system[:_SYSTEM_CHARACTERS]}")
    return "\n".join(lines)


def _shape(messages: Messages, n_turns: int) -> list[str]:
    """One line per remarkable thing about the conversation."""
    shape = []
    if n_turns > 1:
        shape.append(f"[turns {min(n_turns, 9)}]")
    if any(m.get("role") in ("tool", "function") or m.get("tool_calls") for m in messages):
        shape.append("[tools]")
    kinds = {kind for m in messages for kind in _part_kinds(m.get("content"))} - {"text"}
    shape.extend(f"[{kind}]" for kind in sorted(kinds))
    return shape


def _system_text(messages: Messages) -> str:
    for message in messages:
        if message.get("role") in ("system", "developer"):
            return _content_text(message.get("content"))
    return ""


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        return ""
    return "\n".join(text for part in content if (text := _part_text(part)))


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""


def _part_kinds(content: Any) -> list[str]:
    if not isinstance(content, (list, tuple)):
        return []
    return [str(part.get("type", "text")) for part in content if isinstance(part, dict)]
