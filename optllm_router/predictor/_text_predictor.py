"""A predictor on texts: features, a model, the prior, and what was learnt since the last fit."""

from __future__ import annotations

import copy
import math
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._errors import ConfigurationError, InvalidDataError
from optllm_router._types import Prediction
from optllm_router.features import N_DIRECTIONS, TextFeaturizer
from optllm_router.predictor._base import PRIOR_STRENGTH, base_rates, checked_scores
from optllm_router.predictor._recent import CAPACITY, Recent
from optllm_router.predictor._repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optllm_router._types import FloatArray
    from optllm_router.predictor._base import Features, Model

_PARAMETERS = ("name", "model", "n_candidates", "prior", "seed", "remembers")

_MAX_INERTIA = 30.0
"""However many labels were fitted, so many new ones move a base rate half-way."""


class TextPredictor:
    """Predicts from texts with one of the named models; see :func:`make_predictor`.

    Two speeds: ``fit`` learns from everything, ``learn_one`` makes one new score count in the
    very next prediction. Safe to use from several threads, except while ``fit`` runs: fit a new
    predictor and swap.

    Args:
        name: what the model is called.
        model: what learns from features.
        n_candidates: how many candidates there are, k.
        prior: shape (k,), success rates to expect before any label, 0..1; default 0.5.
        seed: of the features.
        remembers: whether labels of the very same text outweigh what the model says.

    Attributes:
        base_: shape (k,), success rates over all labels of the last fit, shrunk to the prior.
        base_std_: shape (k,), their standard deviations.
        featurizer_: learnt features; None before anything was fitted.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        *,
        n_candidates: int,
        prior: FloatArray | None = None,
        seed: int = 0,
        remembers: bool = False,
    ) -> None:
        self.name = name
        self.model = model
        self.n_candidates = n_candidates
        self.prior = prior
        self.seed = seed
        self.remembers = remembers
        self._start(np.empty((0, n_candidates)), None)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of ``__init__``, by name; as in scikit-learn, whose ``clone`` works."""
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self, **params: Any) -> TextPredictor:
        """Set arguments of ``__init__``; what was learnt is forgotten.

        Raises:
            ConfigurationError: naming what is no argument.
        """
        for name, value in params.items():
            if name not in _PARAMETERS:
                raise ConfigurationError(
                    f"a predictor has no parameter {name!r}; set one of {', '.join(_PARAMETERS)}"
                )
            setattr(self, name, value)
        self._start(np.empty((0, self.n_candidates)), None)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TextPredictor:
        """Another with the same knowledge, that learns on its own."""
        with self._lock:
            known = {name: value for name, value in vars(self).items() if name != "_lock"}
            twin = copy.copy(self)
            vars(twin).update(copy.deepcopy(known, memo))
        twin._lock = threading.Lock()
        return twin

    def fit(self, texts: Sequence[str], scores: FloatArray) -> TextPredictor:
        """Learn from n texts.

        Args:
            texts: any strings; those without a score still teach what texts look like.
            scores: shape (n, k) in 0..1, NaN where a pair was never graded.

        Raises:
            InvalidDataError: when shapes do not match, a score is outside 0..1 or a text is none.
        """
        _check_texts(texts)
        scores = checked_scores(scores, len(texts), self.n_candidates)
        graded = np.flatnonzero(~np.isnan(scores).all(axis=1)).tolist()
        if not graded:
            self._start(scores, None)
            return self
        featurizer = TextFeaturizer(self.seed).fit(texts)
        self._start(scores, featurizer)
        asked = [texts[i] for i in graded]
        self.model.fit(featurizer.transform(asked), scores[graded], self.base_)
        if self.remembers:
            self.repeats_.fit(asked, scores[graded])
        return self

    def predict(self, texts: Sequence[str]) -> Prediction:
        """Success probabilities in 0..1 and their uncertainty, shape (n, k) each; never NaN.

        Args:
            texts: any strings; as ``optllm_router.features.Texts`` when others predict from them.
        """
        _check_texts(texts)
        with self._lock:
            self._catch_up()
            x = self._features(texts)
            said = self._model_says(texts, x)
            p = said.p
            if self.recent_.n_seen:
                p = np.clip(p + self.recent_.shifts(x[:, :N_DIRECTIONS]), 0.0, 1.0)
        return Prediction(p, np.hypot(said.std, self.base_std_))

    def learn_one(
        self, text: str, candidate: int, score: float, replaces: float | None = None
    ) -> None:
        """Let one new score change the next predictions at once; costs microseconds.

        Args:
            text: what was asked.
            candidate: index of who answered.
            score: how good the answer was, 0..1.
            replaces: the score that the same answer was given before: as if it had never been,
                unless a fit has learnt it.

        Raises:
            InvalidDataError: when there is no such candidate or the score is outside 0..1.
        """
        _check_texts([text])
        if not (isinstance(candidate, (int, np.integer)) and 0 <= candidate < self.n_candidates):
            raise InvalidDataError(
                f"candidate {candidate} does not exist; choose 0..{self.n_candidates - 1}"
            )
        if not (math.isfinite(score) and 0.0 <= score <= 1.0):
            raise InvalidDataError(f"score {score} is outside 0..1; rescale scores to 0..1")
        self._news.append((text, int(candidate), float(score), replaces))

    def _start(self, scores: FloatArray, featurizer: TextFeaturizer | None) -> None:
        """Base rates, and nothing learnt since."""
        self.base_, self.base_std_ = base_rates(scores, self._checked_prior())
        self.featurizer_ = featurizer
        inertia = np.minimum(PRIOR_STRENGTH + np.sum(~np.isnan(scores), axis=0), _MAX_INERTIA)
        self.repeats_ = Repeats(self.n_candidates)
        self.recent_ = Recent(inertia, N_DIRECTIONS if featurizer else 0)
        self._news: deque[tuple[str, int, float, float | None]] = deque(maxlen=CAPACITY)
        self._lock = threading.Lock()

    def _catch_up(self) -> None:
        """Make residuals of the scores that came since the last prediction."""
        news = [self._news.popleft() for _ in range(len(self._news))]
        if not news:
            return
        texts = [text for text, *_ in news]
        x = self._features(texts)
        p = self._model_says(texts, x).p
        for i, (_, candidate, score, replaces) in enumerate(news):
            near, said = x[i, :N_DIRECTIONS], p[i, candidate]
            if replaces is None or not self.recent_.correct(
                near, candidate, replaces - said, score - said
            ):
                self.recent_.add(near, candidate, score - said)

    def _features(self, texts: Sequence[str]) -> Features:
        if self.featurizer_ is None:
            return np.zeros((len(texts), 0), dtype=np.float32)
        return self.featurizer_.transform(texts)

    def _model_says(self, texts: Sequence[str], x: Features) -> Prediction:
        if self.featurizer_ is None:
            p = np.tile(self.base_, (len(x), 1))
            return Prediction(p, np.zeros_like(p))
        said = self.model.predict(x)
        return Prediction(self.repeats_.corrected(texts, said.p), said.std)

    def _checked_prior(self) -> FloatArray:
        if self.prior is None:
            return np.full(self.n_candidates, 0.5)
        prior = np.asarray(self.prior, dtype=np.float64)
        if prior.shape != (self.n_candidates,) or not np.all((prior >= 0.0) & (prior <= 1.0)):
            raise InvalidDataError(
                f"prior {prior.tolist()} is not {self.n_candidates} success rates in 0..1; "
                "give one per candidate"
            )
        return prior


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise InvalidDataError("texts are a list of strings, not one string; put it in a list")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidDataError(f"text {i} is {text!r:.100}, which is no string")
