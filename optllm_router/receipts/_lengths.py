"""How long a model's answers would have been, and how sure that is."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from optllm_router.learning import Labels
from optllm_router.predictor import LengthPredictor

if TYPE_CHECKING:
    from optllm_router._types import BoolArray, FloatArray, IntArray
    from optllm_router.store import RecordedUsage

_SPREAD = 0.7
"""Of the logarithm of one model's typical length over another's: a factor of two."""
_SPREAD_MODELS = 2.0
"""How many models say so, before any is known."""
_SCATTER_CALLS = 10.0
"""How many of a model's own answers outweigh what all answers say about how lengths scatter."""
_CHOSEN = 0.03
"""How far off the logarithm may be, as a model's own calls were chosen and not drawn at random."""
_TOKENIZERS = 0.1
"""Spread of the logarithm of how many tokens one tokenizer makes of a text, over another."""
_TOKENIZER_CALLS = 20.0
"""How many calls tell it as well as that."""


class Lengths:
    """Lengths of a model's answers, learnt from what a store holds of all models.

    Predictors are fitted on either half of the texts. How far they are off for the model's own
    answers in the other half corrects them, and says how sure that is. Of an answer that was cut
    off at a bound only the least length is known: its tokens count, and it is no answer that came
    to its end.

    Args:
        recorded: what answers consumed.
        model: name of the model; it need not have answered at all.

    Attributes:
        calls: how many of the recorded answers are the model's own.
        factor: what the predicted lengths are to be multiplied with.
        factor_std: how uncertain the logarithm of ``factor`` is.
        scatter: standard deviation of a single answer's length, over what is predicted.
        prompt_factor: tokens of a prompt at this model, over those at the others.
        prompt_factor_std: how uncertain its logarithm is.
    """

    def __init__(self, recorded: Sequence[RecordedUsage], model: str) -> None:
        answers = [one for one in recorded if one.usage.completion_tokens > 0]
        names = sorted({model, *(one.candidate for one in answers)})
        by = np.array([names.index(one.candidate) for one in answers], dtype=np.int64)
        own = by == names.index(model)
        self._model = names.index(model)
        self.calls = int(own.sum())
        self._halves, expected = _cross_fitted(answers, by, len(names))
        tokens = np.array([one.usage.completion_tokens / one.choices for one in answers])
        known = expected > 0
        ended = known & ~np.array([one.usage.cut for one in answers], dtype=bool)
        off = _ratio(tokens[own & known], expected[own & ended])
        self.scatter = math.sqrt(_variance(tokens, off * expected, own & ended, ended))
        prior = 1.0 / _typical_variance(self._halves, np.bincount(by, minlength=len(names)))
        heard = float((own & ended).sum()) / max(self.scatter, _CHOSEN) ** 2
        self.factor = math.exp(math.log(off) * heard / (heard + prior))
        self.factor_std = math.hypot(math.sqrt(1.0 / (heard + prior)), _CHOSEN)
        self.prompt_factor, self.prompt_factor_std = _tokenizer(answers, own)

    def predict(self, texts: Sequence[str]) -> FloatArray:
        """Expected tokens of one answer to each text, before ``factor``; shape (n,), >= 0."""
        said = [
            half.predict(texts)[:, self._model]
            for half in self._halves
            if half.typical_ is not None
        ]
        return np.mean(said, axis=0) if said else np.zeros(len(texts))


def _cross_fitted(
    answers: Sequence[RecordedUsage], by: IntArray, candidates: int
) -> tuple[list[LengthPredictor], FloatArray]:
    """A predictor for each half of the texts, and what the other half's says of every answer.

    The latter is 0 where nothing can be said.
    """
    half = np.array([zlib.crc32(one.query.encode()) & 1 for one in answers], dtype=np.int64)
    predictors, expected = [], np.zeros(len(answers))
    for which in (0, 1):
        labels, cuts = Labels(candidates), Labels(candidates)
        for i in np.flatnonzero(half == which).tolist():
            one = answers[i]
            labels.add(one.query, int(by[i]), one.usage.completion_tokens / one.choices)
            cuts.add(one.query, int(by[i]), float(one.usage.cut))
        _, cut = cuts.matrix()
        predictor = LengthPredictor(candidates).fit(*labels.matrix(), labels.counts(), cut)
        predictors.append(predictor)
        others = np.flatnonzero(half != which)
        if predictor.typical_ is not None and len(others):
            said = predictor.predict([answers[i].query for i in others.tolist()])
            expected[others] = said[np.arange(len(others)), by[others]]
    return predictors, expected


def _ratio(tokens: FloatArray, expected: FloatArray) -> float:
    """All tokens over those expected of the answers that came to their end; 1 without any."""
    return float(tokens.sum() / expected.sum()) if len(expected) else 1.0


def _variance(tokens: FloatArray, expected: FloatArray, own: BoolArray, known: BoolArray) -> float:
    """Of one answer's length over the expected one: the model's own, leaning on everybody's."""

    def relative(which: BoolArray) -> float:
        if not which.any():
            return 1.0
        return float(
            np.mean((tokens[which] - expected[which]) ** 2) / np.mean(expected[which]) ** 2
        )

    calls = float(own.sum())
    return (calls * relative(own) + _SCATTER_CALLS * relative(known)) / (calls + _SCATTER_CALLS)


def _typical_variance(halves: Sequence[LengthPredictor], answers: IntArray) -> float:
    """Of the logarithm of models' typical lengths."""
    total, models = _SPREAD_MODELS * _SPREAD**2, _SPREAD_MODELS
    for half in halves:
        if half.typical_ is not None and (answers > 0).sum() > 1:
            logs = np.log(np.maximum(half.typical_[answers > 0], 1.0))
            total += float(((logs - logs.mean()) ** 2).sum()) / len(halves)
            models += (len(logs) - 1) / len(halves)
    return total / models


def _tokenizer(answers: Sequence[RecordedUsage], own: BoolArray) -> tuple[float, float]:
    """How many tokens the model makes of a prompt, over the others; and its log's uncertainty."""
    tokens = np.array([one.usage.prompt_tokens for one in answers], dtype=np.float64)
    size = np.array([max(1, one.prompt_bytes) for one in answers], dtype=np.float64)
    calls = float(own.sum())
    weight = calls / (calls + _TOKENIZER_CALLS)
    factor = 1.0
    if own.any() and not own.all():
        here, there = (tokens[which].sum() / size[which].sum() for which in (own, ~own))
        factor = math.exp(weight * math.log(here / there))
    return factor, _TOKENIZERS * math.sqrt(1.0 - weight)
