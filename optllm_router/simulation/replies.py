"""What a model says to a prompt, its length in tokens, and replies that were recorded earlier."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

# A rough tokenizer: up to three digits, a word, or a run of punctuation each count as one. It
# needs no vocabulary, and rarely counts more than a provider's tokenizer would.
_TOKEN = re.compile(r"\d{1,3}|[^\W\d]+|[^\w\s]+")


@dataclass(frozen=True)
class Reply:
    """One whole answer of a model, with the tokens that its provider would bill.

    Attributes:
        text: the answer.
        prompt_tokens: tokens of the prompt, >= 0.
        completion_tokens: tokens of the answer, >= 0.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int

    def truncated(self, max_tokens: int | None) -> Reply:
        """Return what is left of the answer when at most ``max_tokens`` may be generated.

        The text keeps the same share of its characters as of its tokens, since recorded
        replies come with a count but without the tokens themselves.

        >>> Reply("four score and seven", 3, 4).truncated(2)
        Reply(text='four score', prompt_tokens=3, completion_tokens=2)
        """
        if max_tokens is None or self.completion_tokens <= max_tokens:
            return self
        kept = len(self.text) * max_tokens // self.completion_tokens
        return replace(self, text=self.text[:kept], completion_tokens=max_tokens)


class Responder(Protocol):
    """Whoever answers behind the server: simulated models, or recorded replies."""

    @property
    def names(self) -> tuple[str, ...]:
        """The models that can be asked."""
        ...

    @property
    def takes_orders(self) -> bool:
        """Whether it calls tools and keeps to schemas when it is told to."""
        ...

    def reply(self, model: str, prompt: str, context: str) -> Reply | None:
        """Answer ``prompt`` as ``model`` (one of ``names``), or None when it has no answer.

        Args:
            model: who is asked.
            prompt: the last user turn.
            context: every other message; it costs tokens and changes nothing else.
        """
        ...


class RecordedReplies:
    """Replies that real models once gave, by prompt and model.

    Args:
        replies: ``{prompt: {model: reply}}``; pairs may be missing.
    """

    takes_orders = False

    def __init__(self, replies: Mapping[str, Mapping[str, Reply]]) -> None:
        self._replies = replies
        self._names = tuple(
            dict.fromkeys(name for by_model in replies.values() for name in by_model)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Every model with at least one reply, in the order of appearance."""
        return self._names

    def reply(self, model: str, prompt: str, context: str) -> Reply | None:
        """Return the recorded reply as it is, or None when the pair was never recorded."""
        return self._replies.get(prompt, {}).get(model)


def count_tokens(text: str) -> int:
    """Count the tokens of ``text`` as the simulated models bill them.

    >>> count_tokens("What is 12345 + 6?")
    7
    """
    return len(_TOKEN.findall(text))
