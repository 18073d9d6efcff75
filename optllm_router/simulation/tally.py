"""What a server was asked and what it answered, counted where it happens."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

from optllm_router._types import Usage


class Tally:
    """Counts per model; written by the server, read from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._served: defaultdict[str, list[Usage]] = defaultdict(list)

    def received(self, model: str) -> None:
        """Count a call that arrived, whatever becomes of it."""
        with self._lock:
            self._requests[model] += 1

    def answered(self, model: str, usage: Usage) -> None:
        """Count a call for which the model did its work."""
        with self._lock:
            self._served[model].append(usage)

    def metered(self, model: str, asked: Usage) -> Callable[[int], None]:
        """Count a call whose answer is still being made.

        Args:
            model: who makes it.
            asked: what the prompt is billed as.

        Returns:
            What to tell the completion tokens made so far, again and again.
        """
        self.answered(model, asked)
        usages = self._served[model]
        place = len(usages) - 1

        def generated(completion_tokens: int) -> None:
            with self._lock:
                usages[place] = replace(asked, completion_tokens=completion_tokens)

        return generated

    def requests(self) -> Counter[str]:
        """Return the calls received so far, by model."""
        with self._lock:
            return self._requests.copy()

    def served(self) -> dict[str, tuple[Usage, ...]]:
        """Return the usage of every call answered so far, by model, in order."""
        with self._lock:
            return {model: tuple(usages) for model, usages in self._served.items()}
