"""Learning online at two speeds.

A label (how good an answer was, or how long) changes the very next predictions
(``learn_one``); once enough new ones have come in, a fresh predictor is fitted on all of them in
the background and takes over atomically.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from optllm_router._memory import give_back_freed_memory
from optllm_router._types import Predictor
from optllm_router.predictor import LengthPredictor

if TYPE_CHECKING:
    from optllm_router._types import FloatArray, Prediction

Taught = TypeVar("Taught", bound="_Teachable")

_log = logging.getLogger("optllm_router")

MOST_TEXTS = 20_000
"""How many texts, the most recently graded ones, a refit learns from."""
_FIRST_FIT = 20
_MOST_NEW = MOST_TEXTS // 10
"""New labels that are taught to a predictor that was fitted meanwhile: if there are more, it is
fitted again at once."""


class _Row(NamedTuple):
    """The labels of a text, by candidate: their sums and how many they are, shape (k,) each.

    It keeps the text as it first came: one from the latest call would hold on to the memory page
    where all else of that call was, and so a process grows with each call of a text it knows.
    """

    text: str
    totals: FloatArray
    counts: FloatArray


class Labels:
    """Labels by text and candidate; a later label of the same pair is averaged in.

    >>> labels = Labels(2)
    >>> labels.add("a", 0, 1.0); labels.add("a", 0, 0.0); labels.add("b", 1, 1.0)
    >>> labels.matrix()
    (['a', 'b'], array([[0.5, nan],
           [nan, 1. ]]))
    """

    def __init__(self, candidates: int) -> None:
        self._candidates = candidates
        self._rows: dict[str, _Row] = {}
        self.count = 0

    def add(self, text: str, candidate: int, label: float) -> None:
        """Add one label."""
        row = self._rows.pop(text, None)
        if row is None:
            row = _Row(text, np.zeros(self._candidates), np.zeros(self._candidates))
        row.totals[candidate] += label
        row.counts[candidate] += 1
        self._rows[row.text] = row
        self.count += 1
        if len(self._rows) > MOST_TEXTS:
            del self._rows[next(iter(self._rows))]

    def replace(self, text: str, candidate: int, old: float, new: float) -> None:
        """Put a label in the place of one that was added before."""
        if text not in self._rows or not self._rows[text].counts[candidate]:
            self.add(text, candidate, new)
        else:
            self._rows[text].totals[candidate] += new - old

    def matrix(self) -> tuple[list[str], FloatArray]:
        """The texts and their mean labels, shape (n, k), NaN where there is none."""
        totals, counts = self._matrix(row.totals for row in self._rows.values()), self.counts()
        means = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
        return list(self._rows), means

    def counts(self) -> FloatArray:
        """Of how many labels each mean is, shape (n, k)."""
        return self._matrix(row.counts for row in self._rows.values())

    def _matrix(self, rows: Iterable[FloatArray]) -> FloatArray:
        return np.array(list(rows)).reshape(-1, self._candidates)


class _Teachable(Protocol):
    """A predictor of success, or of length."""

    @property
    def fit(self) -> Callable[..., object]:
        """Learn from texts and labels, shape (n, k), as they were handed over."""
        ...

    @property
    def learn_one(self) -> Callable[..., object]:
        """Let one lesson change the next predictions at once."""
        ...


class _Learner(Generic[Taught]):
    """A predictor that keeps learning; thread-safe.

    A lesson is what the predictor's ``learn_one`` takes.
    """

    _growth = 1.1
    """All is learnt anew once so many times as many labels are known; of more than are kept, once
    as many are new as if that many were all."""

    def __init__(self, make: Callable[[], Taught], candidates: int) -> None:
        self._make = make
        self._predictor = make()
        self._labels = Labels(candidates)
        self._since_fit: deque[tuple[Any, ...]] = deque(maxlen=_MOST_NEW)
        self._tried_on = 0  # labels at the last fit, whether it succeeded or failed
        self._refit: Future[None] | None = None
        self._lock = threading.Lock()

    @property
    def labels(self) -> int:
        """How many labels were learnt."""
        return self._labels.count

    def wait(self) -> None:
        """Wait until no refit is under way; raises what one raised."""
        while (refit := self._refit) is not None:
            refit.result()

    def _learn(self, lesson: tuple[Any, ...]) -> None:
        with self._lock:
            self._note(lesson)
            self._predictor.learn_one(*lesson)
            if self._due():
                self._refit_in_background()

    def _learn_many(self, lessons: Sequence[tuple[Any, ...]]) -> None:
        with self._lock:
            for lesson in lessons:
                self._note(lesson)
            if self._since_fit:
                self._refit_in_background()

    def _note(self, lesson: tuple[Any, ...]) -> None:
        """Keep it for the next fits."""
        self._since_fit.append(lesson)

    def _training(self) -> tuple[Any, ...]:
        return self._labels.matrix()

    def _due(self) -> bool:
        new = (self._growth - 1.0) * min(self._tried_on, MOST_TEXTS)
        return self._labels.count >= max(_FIRST_FIT, self._tried_on + new)

    def _refit_in_background(self) -> None:
        if self._refit is not None:
            return
        refit = self._refit = Future()
        # Not a daemon: one that dies in the middle of an import hangs the interpreter's exit.
        thread = threading.Thread(target=self._fit_and_tell, args=(refit,), name="optllm-refit")
        try:
            thread.start()
        except RuntimeError as error:  # whoever taught this has an answer to deliver
            _log.error("no refit of the predictor: %s; the last one stays in use", error)
            self._tried_on = self._labels.count
            self._refit = None
            refit.set_exception(error)

    def _fit_and_tell(self, refit: Future[None]) -> None:
        try:
            self._fit()
        except Exception as error:  # noqa: BLE001 - logged, and handed to whoever waits
            _log.exception("the refit of the predictor failed; the last one stays in use")
            with self._lock:
                self._refit = None
            refit.set_exception(error)
        else:
            refit.set_result(None)
            give_back_freed_memory()

    def _fit(self) -> None:
        with self._lock:
            training = self._training()
            self._tried_on = self._labels.count
            self._since_fit.clear()
        fresh = self._make()
        fresh.fit(*training)
        with self._lock:
            for lesson in self._since_fit:
                fresh.learn_one(*lesson)
            self._predictor = fresh
            self._refit = None  # under the same lock: what comes next starts a new one
            untaught = self._labels.count - self._tried_on > len(self._since_fit)
            if untaught or self._due():
                self._refit_in_background()


class Learner(_Learner[Predictor]):
    """A predictor of success that keeps learning; thread-safe.

    Args:
        make: makes a fresh, unfitted predictor.
        candidates: how many candidates there are.
    """

    def predict(self, texts: Sequence[str]) -> Prediction:
        """Predict with all that is known now."""
        with self._lock:
            return self._predictor.predict(texts)

    def learn(
        self, text: str, candidate: int, label: float, *, replaces: float | None = None
    ) -> None:
        """Learn one label at once, and refit in the background when many are new.

        Args:
            text: what was asked.
            candidate: who answered.
            label: what is to be learnt.
            replaces: the label that the same answer had before, if any.
        """
        self._learn((text, candidate, label, replaces))

    def learn_many(self, labelled: Iterable[tuple[str, int, float]]) -> None:
        """Learn many labels by a refit in the background; :meth:`wait` for it if need be."""
        self._learn_many([(*one, None) for one in labelled])

    def _note(self, lesson: tuple[Any, ...]) -> None:
        text, candidate, label, replaces = lesson
        if replaces is None:
            self._labels.add(text, candidate, label)
        else:
            self._labels.replace(text, candidate, replaces, label)
        super()._note(lesson)


class LengthLearner(_Learner[LengthPredictor]):
    """A predictor of lengths that keeps learning; thread-safe.

    It matters of how many answers each mean length is, and how many of them were cut off.

    Args:
        make: makes a fresh, unfitted predictor.
        candidates: how many candidates there are.
    """

    _growth = 2.0  # every call teaches a length: a refit per tenth would cost as much as the calls

    def __init__(self, make: Callable[[], LengthPredictor], candidates: int) -> None:
        super().__init__(make, candidates)
        self._cuts = Labels(candidates)

    def predict(self, texts: Sequence[str]) -> FloatArray:
        """Expected tokens of each candidate's answer; see :class:`LengthPredictor`."""
        with self._lock:
            return self._predictor.predict(texts)

    def predict_high(self, texts: Sequence[str]) -> FloatArray:
        """Tokens that few answers exceed; see :meth:`LengthPredictor.predict_high`."""
        with self._lock:
            return self._predictor.predict_high(texts)

    def learn(self, text: str, candidate: int, tokens: float, cut: bool = False) -> None:
        """Learn the length of one answer at once; as :meth:`Learner.learn`.

        Args:
            text: what was asked.
            candidate: who answered.
            tokens: length of the answer.
            cut: whether it was cut off there.
        """
        self._learn((text, candidate, tokens, cut))

    def learn_many(self, lengths: Iterable[tuple[str, int, float, bool]]) -> None:
        """Learn many lengths, with whether each was cut off; as :meth:`Learner.learn_many`."""
        self._learn_many(list(lengths))

    def _note(self, lesson: tuple[Any, ...]) -> None:
        text, candidate, tokens, cut = lesson
        self._labels.add(text, candidate, tokens)
        self._cuts.add(text, candidate, float(cut))
        super()._note(lesson)

    def _training(self) -> tuple[Any, ...]:
        _, cut = self._cuts.matrix()
        return (*super()._training(), self._labels.counts(), cut)
