"""Which of the tools on offer a simulated model calls, by a rule that anyone can predict."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WORD = re.compile(r"[a-z]{4,}")


@dataclass(frozen=True)
class Tool:
    """A function that may be called.

    Attributes:
        name: of the function.
        definition: all that the request says of it.
    """

    name: str
    definition: Mapping[str, Any]

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The JSON schema of its arguments."""
        return self.definition.get("parameters") or {"type": "object"}


@dataclass(frozen=True)
class Tools:
    """What a request offers, and what it says about using it.

    Attributes:
        offered: in the order given.
        choice: ``auto``, ``none``, ``required``, or a tool that must be called.
    """

    offered: tuple[Tool, ...]
    choice: str | Tool


def read_tools(given: Any, choice: Any) -> Tools | None:
    """Read ``tools`` and ``tool_choice`` of a request; None when they are not what they must be."""
    if given in (None, []):
        return Tools((), "none") if choice in (None, "auto", "none") else None
    if not isinstance(given, list):
        return None
    offered = []
    for tool in given:
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str):
            return None
        if not isinstance(function.get("parameters"), dict | None):
            return None
        offered.append(Tool(name, function))
    if choice in (None, "auto", "none", "required"):
        return Tools(tuple(offered), choice or "auto")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return _allowed(offered, choice.get("allowed_tools"))
    wanted = choice.get("function") if isinstance(choice, dict) else None
    name = wanted.get("name") if isinstance(wanted, dict) else None
    named = next((tool for tool in offered if tool.name == name), None)
    return None if named is None else Tools(tuple(offered), named)


def _allowed(offered: Sequence[Tool], given: Any) -> Tools | None:
    """Those of the tools on offer that may be called; None when they are not what they must be."""
    tools = given.get("tools") if isinstance(given, dict) else None
    if not isinstance(tools, list) or not tools or given.get("mode") not in ("auto", "required"):
        return None
    named = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    names = [function.get("name") for function in named if isinstance(function, dict)]
    allowed = tuple(tool for tool in offered if tool.name in names)
    return Tools(allowed, given["mode"]) if len(allowed) == len(tools) else None


def called(tools: Tools, prompt: str, *, is_asked: bool, parallel: bool) -> tuple[Tool, ...]:
    """The tools that a model calls.

    With ``auto`` those that share a word of four letters or more with the prompt
    (``get_weather`` and "What is the weather in Oslo?"), and only when the user spoke last:
    what tools return is answered in words. With ``required`` the first one when none does.

    Args:
        tools: what is offered.
        prompt: the last user turn.
        is_asked: whether the user spoke last.
        parallel: whether several may be called at once.
    """
    if isinstance(tools.choice, Tool):
        return (tools.choice,)
    if tools.choice == "none":
        return ()
    words = set(_WORD.findall(prompt.lower()))
    fitting = [tool for tool in tools.offered if words & set(_WORD.findall(tool.name.lower()))]
    if tools.choice == "required":
        fitting = fitting or [tools.offered[0]]
    elif not is_asked:
        return ()
    return tuple(fitting if parallel else fitting[:1])
