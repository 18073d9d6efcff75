"""What a server was asked and what it answered, counted where it happens."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict

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

    def requests(self) -> Counter[str]:
        """Return the calls received so far, by model."""
        with self._lock:
            return self._requests.copy()

    def served(self) -> dict[str, tuple[Usage, ...]]:
        """Return the usage of every call answered so far, by model, in the order of answering."""
        with self._lock:
            return {model: tuple(usages) for model, usages in self._served.items()}
