"""How long each candidate's answer to a text will be, in tokens.

What is asked decides the length (a letter, a proof), and it does so for all candidates alike; so
lengths are learnt as multiples of each candidate's own typical length. After deployment each
answer tells the length of one candidate only: a node of a tree knows how far the answers of all
candidates together deviate there, and lets each candidate's own answers speak as they come in.

Means are forecast, not medians: they add up to what a batch costs. Beside them stands a length that
few answers exceed, from how far the forecasts were off for answers that were not fitted.

Of an answer that was cut off at a bound only the least length is known. It is taken to have gone
on for as long as any other at any point, so that its expected rest is a typical length: then the
mean is all tokens, those of cut answers included, by the number of answers that came to their end
(the exponential distribution's estimate from censored lifetimes).
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from optllm_router._errors import InvalidDataError
from optllm_router.features import TextFeaturizer
from optllm_router.predictor._forest import mean
from optllm_router.predictor._pruning import tally
from optllm_router.predictor._trees import Trees, collapse, grow
from optllm_router.predictor._walking import Walker, walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from optllm_router._types import FloatArray
    from optllm_router.predictor._base import Features

_TREES, _TREES_PER_FOLD = 25, 12
_FOLDS = 3
_LEAST_TEXTS = 8
"""With fewer texts than this only typical lengths are told apart."""
_MAX_VALIDATED = 1_500
"""Texts used for cross-validation at most: beyond, its answer no longer changes."""
_LEAST_POOLING, _MOST_POOLING = 0.1, 10.0
"""How many answers of its own may outweigh what the other candidates' say of a typical length."""
_INERTIA, _MAX_INERTIA = 4.0, 100.0
"""So many new answers, and one for each that was fitted, move a typical length half-way."""
_RIDGE = 4.0
"""How many answers say that length does not depend on the size of the text."""
_STRENGTH = 2.0
"""How many answers a node's parent counts for."""
_TOLERANCE = 0.02
"""Multiples of the typical length that are closer than this are the same."""
_LEAST_SHARE = 0.01
"""Of a typical length, that every answer is expected to have: a line may fall below zero."""
HIGH = 0.95
"""Share of the answers that are no longer than :meth:`LengthPredictor.predict_high` says."""
_UNKNOWN_HIGH = 3.0
"""The same of an exponential distribution, as a multiple of its mean: before enough is known."""
_NEWS = 512
"""Answers since the last prediction that wait for the next one; the oldest make room."""
_MOST_EXPECTED = 2 * _NEWS
"""Forecasts that are kept: a text that was just asked is asked again, or its answer comes in."""


class LengthPredictor:
    """Predicts the mean number of completion tokens; learns from partial data.

    A forecast is the candidate's typical length, times a line in the size of the text, plus what
    extremely randomised trees say about its words. Cross-validation decides whether the line is
    used, and how much of the trees is believed: nothing, where the text does not help. Not safe
    to use from several threads.

    Args:
        n_candidates: how many candidates there are, k.
        seed: of the features, the trees and the folds.

    Attributes:
        typical_: shape (k,), each candidate's typical length in tokens; None before anything
            was fitted.
        line_: how lengths follow the size of the text; flat where they do not.
        belief_: 0..1, how much of what the trees say held up out of sample.
        high_: shape (k,), how many times its mean a high length is, >= 1.

    Examples:
        >>> texts = [f"{what} {n}" for n in range(20) for what in ("Yes or no:", "Write a story:")]
        >>> tokens = np.array([[1.0, np.nan], [np.nan, 200.0], [np.nan, 2.0], [100.0, np.nan]] * 10)
        >>> lengths = LengthPredictor(2).fit(texts, tokens)
        >>> short, long = lengths.predict(["Yes or no: 30", "Write a story: 30"])
        >>> bool(short[0] < short[1] < 10 and 50 < long[0] < long[1])
        True
    """

    def __init__(self, n_candidates: int, *, seed: int = 0) -> None:
        self.n_candidates = n_candidates
        self.seed = seed
        self.typical_: FloatArray | None = None
        self.line_, self.belief_ = _FLAT, 0.0
        self.high_ = np.full(n_candidates, _UNKNOWN_HIGH)
        self._news: deque[tuple[str, int, float, bool]] = deque(maxlen=_NEWS)
        self._known: dict[str, FloatArray] = {}

    def fit(
        self,
        texts: Sequence[str],
        tokens: FloatArray,
        counts: FloatArray | None = None,
        cut: FloatArray | None = None,
    ) -> LengthPredictor:
        """Learn from n texts; what was learnt before is forgotten.

        Args:
            texts: n different texts.
            tokens: shape (n, k), the mean length of a candidate's answers to a text, >= 0; NaN
                where it has not answered.
            counts: shape (n, k), of how many answers ``tokens`` is the mean; once by default.
            cut: shape (n, k), the share of them, 0..1, that was cut off at a bound; none by
                default.

        Raises:
            InvalidDataError: when shapes do not match or a length is negative or infinite.
        """
        tokens = self._checked(tokens, len(texts))
        counts = np.where(np.isnan(tokens), 0.0, 1.0 if counts is None else counts)
        cut = counts * np.where(counts > 0, 0.0 if cut is None else cut, 0.0)
        self.typical_, self.line_, self.belief_ = None, _FLAT, 0.0
        self.high_ = np.full(self.n_candidates, _UNKNOWN_HIGH)
        self._news.clear()
        self._known.clear()
        answered = np.flatnonzero(counts.any(axis=1))
        if not (counts > cut).any():  # no answer came to its end
            return self
        texts = [texts[i] for i in answered.tolist()]
        lengths = _Lengths(tokens[answered], counts[answered], cut[answered])
        typical = lengths.typical()
        if len(texts) >= _LEAST_TEXTS:
            typical = self._fit_trees(texts, lengths, typical)
        inertia = np.minimum(_INERTIA + lengths.ended.sum(axis=0), _MAX_INERTIA)
        self.typical_ = typical
        self._told, self._seen = inertia * typical, inertia * typical
        return self

    def predict(self, texts: Sequence[str]) -> FloatArray:
        """Expected tokens of each candidate's answer, shape (n, k), >= 0.

        All NaN before any whole answer was fitted. A candidate that never answered is taken to
        answer at the length that is typical of all.
        """
        if self.typical_ is None:
            return np.full((len(texts), self.n_candidates), np.nan)
        self._catch_up(self.typical_)
        return np.asarray(self._expected(texts, self.typical_) * self._seen / self._told)

    def predict_high(self, texts: Sequence[str]) -> FloatArray:
        """Tokens that one answer does not exceed with a probability of ``HIGH``, shape (n, k).

        Split-conformal, by multiples of the mean that answers came to whose texts were not
        fitted: right on average over a candidate's answers, not for each kind of text.
        """
        return np.asarray(self.predict(texts) * self.high_)

    def learn_one(self, text: str, candidate: int, tokens: float, cut: bool = False) -> None:
        """Let one more answer move its candidate's typical length at once.

        Args:
            text: what was asked.
            candidate: index of who answered.
            tokens: length of the answer.
            cut: whether it was cut off there.

        Raises:
            InvalidDataError: when there is no such candidate, or the length is negative or
                infinite.
        """
        if not 0 <= candidate < self.n_candidates:
            raise InvalidDataError(
                f"candidate {candidate} does not exist; choose 0..{self.n_candidates - 1}"
            )
        if not (math.isfinite(tokens) and tokens >= 0.0):
            raise InvalidDataError(f"an answer has {tokens} tokens; count 0 or more")
        if self.typical_ is not None:
            self._news.append((text, candidate, tokens, cut))

    def _catch_up(self, typical: FloatArray) -> None:
        """Let the answers that came since the last prediction move the typical lengths."""
        news = [self._news.popleft() for _ in range(len(self._news))]
        if not news:
            return
        expected = self._expected([text for text, *_ in news], typical)
        for told, (_, candidate, tokens, cut) in zip(expected, news, strict=True):
            self._told[candidate] += 0.0 if cut else told[candidate]
            self._seen[candidate] += tokens

    def _fit_trees(
        self, texts: Sequence[str], lengths: _Lengths, typical: FloatArray
    ) -> FloatArray:
        """Fits all but the typical lengths, and corrects these: shape (k,).

        An answer that was cut off goes on for as long as its own text lets expect.
        """
        self._featurizer = TextFeaturizer(self.seed, coarse=True).fit(texts)
        x, sizes = self._featurizer.transform(texts), _sizes(texts)
        whole = lengths
        trial = self._best(x, sizes, whole.over(typical))
        if lengths.cut.any():
            whole = lengths.completed(np.where(np.isnan(trial.share), 1.0, trial.share) * typical)
            typical = whole.typical()
            trial = self._best(x, sizes, whole.over(typical))
        excess = whole.over(typical)
        self.belief_ = trial.belief
        if trial.sloped:
            self.line_ = _Line.fitted(sizes, excess)
        if self.belief_:
            left_over = excess.beyond(self.line_.at(sizes))
            trees, values = _grow(x, left_over, n_trees=_TREES, seed=self.seed)
            trees, self._values = collapse(trees, values, _TOLERANCE)
            self._walker = Walker(trees)
        self.high_ = _high(lengths, trial.share * typical)
        return typical

    def _best(self, x: Features, sizes: FloatArray, excess: _Excess) -> _Trial:
        trials = [self._tried(x, sizes, excess, sloped=sloped) for sloped in (False, True)]
        return min(trials, key=lambda trial: trial.error)

    def _tried(self, x: Features, sizes: FloatArray, excess: _Excess, *, sloped: bool) -> _Trial:
        """Cross-validates the trees, on top of a line if ``sloped``.

        The belief is the factor f of least squared error in ``left_over = f * said``, under a
        standard normal prior: it takes evidence to believe anything.
        """
        share = np.full_like(excess.values, np.nan)
        rows = np.random.default_rng(self.seed).permutation(len(x))[:_MAX_VALIDATED]
        x, sizes, excess = x[rows], sizes[rows], excess.select(rows)
        left_over, said = np.empty_like(excess.values), np.empty_like(excess.values)
        on_line = np.empty(len(x))
        for fold in range(_FOLDS):
            test = np.arange(len(x)) % _FOLDS == fold
            known, unknown = np.flatnonzero(~test), np.flatnonzero(test)
            line = _Line.fitted(sizes[known], excess.select(known)) if sloped else _FLAT
            seen = excess.select(known).beyond(line.at(sizes[known]))
            trees, values = _grow(x[known], seen, n_trees=_TREES_PER_FOLD, seed=self.seed)
            said[unknown] = mean(walk(trees, x[unknown]), values)
            on_line[unknown] = line.at(sizes[unknown])
            left_over[unknown] = excess.select(unknown).beyond(on_line[unknown]).values
        weights = excess.counts
        noise = float((weights * left_over**2).sum() / weights.sum())
        square = float((weights * said**2).sum()) + noise
        belief = float((weights * said * left_over).sum()) / square if square else 0.0
        belief = min(max(belief, 0.0), 1.0)
        share[rows] = np.maximum(1.0 + on_line[:, None] + belief * said, _LEAST_SHARE)
        error = float((weights * (left_over - belief * said) ** 2).sum())
        return _Trial(sloped, belief, error, share)

    def _expected(self, texts: Sequence[str], typical: FloatArray) -> FloatArray:
        """Forecasts as they were fitted, regardless of later news: shape (n, k)."""
        if not 0 < len(texts) <= _NEWS:
            return self._forecast(texts, typical)
        if any(text not in self._known for text in texts):
            for text, forecast in zip(texts, self._forecast(texts, typical), strict=True):
                self._known[text] = forecast
        expected = np.stack([self._known[text] for text in texts])
        while len(self._known) > _MOST_EXPECTED:
            del self._known[next(iter(self._known))]
        return expected

    def _forecast(self, texts: Sequence[str], typical: FloatArray) -> FloatArray:
        """As :meth:`_expected`, anew."""
        share = 1.0 + self.line_.at(_sizes(texts))[:, None]
        if self.belief_:
            x = self._featurizer.transform(texts)
            share = share + self.belief_ * mean(self._walker.leaves(x), self._values)
        return typical * np.maximum(share, _LEAST_SHARE)

    def _checked(self, tokens: FloatArray, n_texts: int) -> FloatArray:
        tokens = np.asarray(tokens, dtype=np.float64)
        if tokens.shape != (n_texts, self.n_candidates):
            raise InvalidDataError(
                f"tokens have shape {tokens.shape}, but {n_texts} texts and {self.n_candidates} "
                f"candidates need {(n_texts, self.n_candidates)}; put NaN where none answered"
            )
        bad = tokens[(tokens < 0.0) | np.isinf(tokens)]
        if len(bad):
            raise InvalidDataError(f"an answer has {bad[0]} tokens; count 0 or more")
        return tokens


class _Lengths(NamedTuple):
    """Mean lengths, of how many answers, and how many of these were cut off, shape (n, k) each;
    NaN where the count is 0.
    """

    tokens: FloatArray
    counts: FloatArray
    cut: FloatArray

    @property
    def ended(self) -> FloatArray:
        """How many answers came to their end, shape (n, k)."""
        return self.counts - self.cut

    def typical(self) -> FloatArray:
        """Each candidate's mean, the more like that of all the fewer answers it gave; >= 1.

        Pooled as logarithms, so that a terse candidate is not drowned by a verbose one; the
        more, the more answers vary and the less candidates do (empirical Bayes). A candidate of
        which all answers were cut off goes on after that as all candidates do.
        """
        answers, cut = self.ended.sum(axis=0), self.cut.sum(axis=0)
        totals = np.where(self.counts > 0, self.counts * self.tokens, 0.0).sum(axis=0)
        own = np.maximum(totals / np.maximum(answers, 1.0), 1.0)
        common = float(answers @ np.log(own)) / answers.sum()
        variation = (self.ended * self.over(own).values ** 2).sum()
        variation = (1.0 + variation) / (1.0 + max(answers.sum() - np.sum(answers > 0), 0.0))
        difference = float(answers @ (np.log(own) - common) ** 2) / answers.sum()
        strength = np.clip(variation / max(difference, 1e-9), _LEAST_POOLING, _MOST_POOLING)
        pooled = (answers * np.log(own) + strength * common) / (answers + strength)
        return np.asarray(
            np.exp(pooled) + np.where(answers > 0, 0.0, totals / np.maximum(cut, 1.0))
        )

    def completed(self, rest: FloatArray) -> _Lengths:
        """As if those that were cut off had gone on for so long, shape (n, k)."""
        share = self.cut / np.maximum(self.counts, 1.0)
        return _Lengths(self.tokens + share * rest, self.counts, np.zeros_like(self.cut))

    def over(self, typical: FloatArray) -> _Excess:
        """By which share of the typical length each one is longer, if those that were cut off
        had gone on for another.
        """
        beyond = self.tokens / typical - self.ended / np.maximum(self.counts, 1.0)
        return _Excess(np.where(self.counts > 0, beyond, 0.0), self.counts)


class _Excess(NamedTuple):
    """Excess lengths as shares, and of how many answers, shape (n, k) each; 0 for none."""

    values: FloatArray
    counts: FloatArray

    def select(self, rows: NDArray[np.int64]) -> _Excess:
        """Those of some texts."""
        return _Excess(self.values[rows], self.counts[rows])

    def beyond(self, expected: FloatArray) -> _Excess:
        """What is left over of it beyond what was expected of each text, shape (n,)."""
        return _Excess(np.where(self.counts > 0, self.values - expected[:, None], 0.0), self.counts)

    def imputed(self) -> FloatArray:
        """With the row's mean where a candidate has not answered: to grow trees on."""
        common = (self.counts * self.values).sum(axis=1) / self.counts.sum(axis=1)
        return np.where(self.counts > 0, self.values, common[:, None])


class _Line(NamedTuple):
    """Excess as a line in the size of the text, shared by all candidates.

    Beyond the texts that were seen it rises in proportion to their size at most, and does not
    fall.
    """

    centre: float
    slope: float
    end: float = np.inf

    @classmethod
    def fitted(cls, sizes: FloatArray, excess: _Excess) -> _Line:
        """By least squares, with a ridge."""
        weights = excess.counts.sum(axis=1)
        centre = float(weights @ sizes / weights.sum())
        away = sizes - centre
        square = float(weights @ away**2) * (1.0 + _RIDGE / float(weights.sum()))
        product = float(away @ (excess.counts * excess.values).sum(axis=1))
        slope = product / square if square else 0.0
        if slope < 0:
            return cls(centre, slope, end=float(sizes.max()))
        return cls(centre, min(slope, 1.0 / max(centre, 1.0)))

    def at(self, sizes: FloatArray) -> FloatArray:
        """The excess expected of texts of these sizes, shape (n,)."""
        return self.slope * (np.minimum(sizes, self.end) - self.centre)


_FLAT = _Line(0.0, 0.0)


class _Trial(NamedTuple):
    """Cross-validation with a line or without.

    Attributes:
        sloped: whether there was a line.
        belief: in the trees.
        error: squared, out of sample.
        share: shape (n, k), of the typical length, expected of each text by what was learnt from
            others; NaN where that was not tried.
    """

    sloped: bool
    belief: float
    error: float
    share: FloatArray


def _grow(
    x: Features, excess: _Excess, *, n_trees: int, seed: int
) -> tuple[Trees, NDArray[np.float32]]:
    """Trees, and the excess that each node expects of each candidate, shape (nodes, k).

    From the root down, a node's parent counts for ``_STRENGTH`` answers: for the excess that all
    candidates have in common, and then for each candidate's own, which starts from the parent's
    moved as the common one moved.
    """
    trees = grow(x, excess.imputed(), n_trees=n_trees, seed=seed)
    leaves = walk(trees, x)
    sums = tally(trees, leaves, excess.counts * excess.values).sums
    counts = tally(trees, leaves, excess.counts).sums
    all_sums, all_counts = sums.sum(axis=1), counts.sum(axis=1)
    common, own = np.zeros(len(counts)), np.zeros_like(sums)
    parents = [(trees.roots, trees.roots)]  # a root is its own parent, and expects no excess
    parents += [(i, trees.child[i] + side) for i in trees.levels() for side in (0, 1)]
    for parent, node in parents:
        moved = (all_sums[node] + _STRENGTH * common[parent]) / (all_counts[node] + _STRENGTH)
        start = own[parent] + (moved - common[parent])[:, None]
        own[node] = (sums[node] + _STRENGTH * start) / (counts[node] + _STRENGTH)
        common[node] = moved
    return trees, own.astype(np.float32)


def _high(lengths: _Lengths, expected: FloatArray) -> FloatArray:
    """How many times what was expected of it a high length is, for each candidate, shape (k,).

    Each candidate's own, and that of all where its own answers are too few to tell. Means of
    several answers vary less than an answer does, and are left out.
    """
    single = (lengths.counts == 1.0) & (expected > 0.0)
    ratios = np.where(single, lengths.tokens, 0.0) / np.where(single, expected, 1.0)
    cut = lengths.cut > 0.0
    common = _quantile(ratios[single], cut[single])
    if not math.isfinite(common):
        common = _UNKNOWN_HIGH
    high = np.empty(single.shape[1])
    for j, known in enumerate(single.T):
        own = _quantile(ratios[known, j], cut[known, j])
        largest = float(ratios[known, j].max(initial=1.0))
        high[j] = max(own, 1.0) if math.isfinite(own) else max(common, largest)
    return high


def _quantile(values: FloatArray, cut: NDArray[np.bool_]) -> float:
    """What one more value does not exceed with a probability of ``HIGH``; infinite when too few
    are known.

    The estimate of Kaplan and Meier (1958) from values some of which are least values; without
    these the split-conformal quantile, the ``ceil(HIGH (m + 1))``-th smallest of m.
    """
    order = np.lexsort((cut, values))
    left = (
        len(values) + 1.0 - np.arange(len(values))
    )  # the one more is the largest, for all we know
    above = np.cumprod(1.0 - ~cut[order] / left)
    reached = np.flatnonzero(above <= 1.0 - HIGH + 1e-9)
    return float(values[order[reached[0]]]) if len(reached) else math.inf


def _sizes(texts: Sequence[str]) -> FloatArray:
    return np.array([len(text.encode("utf-8", "replace")) for text in texts], dtype=np.float64)
