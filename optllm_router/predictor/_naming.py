"""Predictors by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optllm_router._errors import ConfigurationError
from optllm_router.predictor._auto import Auto
from optllm_router.predictor._bagged_forest import BaggedForest
from optllm_router.predictor._clusters import Clusters
from optllm_router.predictor._neighbours import Neighbours
from optllm_router.predictor._rates import BaseRates
from optllm_router.predictor._text_predictor import TextPredictor

if TYPE_CHECKING:
    from collections.abc import Callable

    from optllm_router._types import FloatArray
    from optllm_router.predictor._base import Model

_MODELS: dict[str, Callable[[int], Model]] = {
    "auto": lambda seed: Auto(seed=seed),
    "bagged_forest": lambda seed: BaggedForest(seed=seed),
    "knn": lambda seed: Neighbours(seed=seed),
    "clusters": lambda seed: Clusters(seed=seed),
    "base_rates": lambda seed: BaseRates(),
}

PREDICTORS = tuple(_MODELS)
"""The names that :func:`make_predictor` knows; the first is the default."""


def make_predictor(
    name: str = "auto", *, n_candidates: int, prior: FloatArray | None = None, seed: int = 0
) -> TextPredictor:
    """A predictor by name, ready to predict its prior, to learn and to be fitted.

    Args:
        name: ``auto`` (the default: chooses for itself how far to trust the texts),
            ``bagged_forest`` (the OptLLM paper's), ``knn``, ``clusters`` or ``base_rates``.
        n_candidates: how many candidates there are, k >= 1.
        prior: shape (k,), success rates to expect before any label, each worth a few labels.
        seed: of everything random; the same seed and labels give the same predictor.

    Raises:
        ConfigurationError: for an unknown name, or no candidates.
        InvalidDataError: for a prior that is not k rates in 0..1.

    Examples:
        >>> import numpy as np
        >>> predictor = make_predictor(n_candidates=2, prior=np.array([0.5, 0.9]))
        >>> predictor.predict(["What is 2 + 2?"]).p.tolist()
        [[0.5, 0.9]]
        >>> texts = ["add 1 and 2", "add 7 and 8", "sing a song", "sing an aria"] * 5
        >>> scores = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, np.nan]] * 5)
        >>> p = predictor.fit(texts, scores).predict(["add 1 and 8", "sing a duet"]).p
        >>> bool(p[0, 0] > 0.6 > 0.4 > p[1, 0])
        True
    """
    if name not in _MODELS:
        raise ConfigurationError(
            f"no predictor is called {name!r}; choose one of {', '.join(PREDICTORS)}"
        )
    if n_candidates < 1:
        raise ConfigurationError(
            f"a predictor for {n_candidates} candidates predicts nothing; name at least one"
        )
    model = _MODELS[name](seed)
    return TextPredictor(
        name,
        model,
        n_candidates=n_candidates,
        prior=prior,
        seed=seed,
        remembers=name == "auto",  # the others are what they are known for
    )
