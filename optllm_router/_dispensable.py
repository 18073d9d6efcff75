"""Arguments that not every provider takes, and those of them that a call can do without.

What asks for nothing is left out where it would be refused, and sent where it is taken: there it
may undo what a server has set for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REFUSABLE = frozenset(
    (
        *("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "n", "stop"),
        *("logprobs", "top_logprobs", "logit_bias", "response_format"),
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("reasoning_effort", "verbosity", "store", "safety_identifier", "prompt_cache_key"),
    )
)
"""A call's arguments that litellm refuses for providers that do not take them. The others are for
itself, or it leaves them out where they are not taken (``user``)."""
_HINTS = frozenset(("store", "safety_identifier", "prompt_cache_key"))
"""Neither the answer nor its price is another without them: who asks, which cache of a prompt to
look into, and that nothing is kept (``store`` is only ever false) by who keeps things on request.
"""
_DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("temperature", "top_p", "n"), (1,)),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "top_logprobs"), (0,)),
    **dict.fromkeys(("tool_choice", "function_call"), ("auto",)),
    "logprobs": (False,),
    "logit_bias": ({},),
    **dict.fromkeys(("stop", "tools", "functions"), ([], ())),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "verbosity": ("medium",),
}
"""What OpenAI's API takes where an argument is left out; ``reasoning_effort`` and ``seed`` have no
such value."""


def is_dispensable(name: str, value: Any) -> bool:
    """Whether a provider that does not take an argument does without it what was asked for.

    >>> is_dispensable("logprobs", False), is_dispensable("logprobs", True)
    (True, False)
    """
    return value is None or name in _HINTS or value in _DEFAULTS.get(name, ())
