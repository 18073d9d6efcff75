"""Scores, each learnt once by every process that shares a store, whichever of them was told."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

from optllm_router.store import LabelledAnswer, Records

_MOST_REMEMBERED = 100_000
_OVERLAP_SECONDS = 30.0
"""Looked at again each time: a score is stamped before it is committed, by another's clock."""


class Scores:
    """What this process has learnt, and what the store knows beyond that; thread-safe.

    Args:
        records: where all processes keep their scores.
        learn: learns one; ``replaces`` is what this process learnt of the same answer before.
        clock: Unix seconds.
    """

    def __init__(
        self,
        records: Records,
        learn: Callable[[LabelledAnswer], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._learn = learn
        self._known: OrderedDict[str, float] = OrderedDict()
        self._seen_until = clock()
        self._clock = clock
        self._lock = threading.Lock()

    def remember(self, learnt: Iterable[LabelledAnswer]) -> None:
        """Take these for learnt already."""
        with self._lock:
            for one in learnt:
                self._note(one)

    def learn(self, answer: LabelledAnswer) -> None:
        """Learn a score, unless it is known."""
        with self._lock:
            before = self._known.get(answer.decision_id)
            if before != answer.score:
                self._note(answer)
                self._learn(replace(answer, replaces=before))

    def catch_up(self) -> None:
        """Learn what other processes were told since the last time."""
        now = self._clock()
        for answer in self._records.scored_since(self._seen_until - _OVERLAP_SECONDS):
            self.learn(answer)
        self._seen_until = now

    def _note(self, answer: LabelledAnswer) -> None:
        self._known[answer.decision_id] = answer.score
        self._known.move_to_end(answer.decision_id)
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
