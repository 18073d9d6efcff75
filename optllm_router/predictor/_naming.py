"""Predictors by name."""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from optllm_router._errors import ConfigurationError
from optllm_router.predictor._auto import Auto
from optllm_router.predictor._bagged_forest import BaggedForest
from optllm_router.predictor._calibration import Calibrated
from optllm_router.predictor._clusters import Clusters
from optllm_router.predictor._neighbours import Neighbours
from optllm_router.predictor._rates import BaseRates
from optllm_router.predictor._text_predictor import TextPredictor

if TYPE_CHECKING:
    from collections.abc import Callable

    from optllm_router._types import FloatArray, Predictor
    from optllm_router.predictor._base import Model

_MODELS: dict[str, Callable[[int], Model]] = {
    "auto": lambda seed: Auto(seed=seed),
    "bagged_forest": lambda seed: BaggedForest(seed=seed),
    "knn": lambda seed: Calibrated(partial(Neighbours, seed=seed), seed),
    "clusters": lambda seed: Calibrated(partial(Clusters, seed=seed), seed),
    "base_rates": lambda seed: BaseRates(),
}

_METHODS = {
    "fit": ("texts", "scores"),
    "predict": ("texts",),
    "learn_one": ("text", "candidate", "score", "replaces"),
}
"""What a predictor has, and what each is called with, by position."""

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


def predictor_maker(
    predictor: str | Predictor,
    *,
    n_candidates: int,
    prior: FloatArray | None = None,
    seed: int = 0,
) -> Callable[[], Predictor]:
    """What makes predictors, to be fitted or used as they are.

    Args:
        predictor: a name, see :func:`make_predictor`, or an object of one's own, of which deep
            copies are made: what it knows is known until the first of them is fitted.
        n_candidates: as for :func:`make_predictor`.
        prior: of a named one.
        seed: of a named one.

    Raises:
        ConfigurationError: for an unknown name, or an object that cannot be copied, lacks a method,
            has one that takes other arguments, or predicts for another number of candidates.
    """
    if isinstance(predictor, str):
        name = predictor
        make_predictor(name, n_candidates=n_candidates)  # raises here, not when it is used
        return lambda: make_predictor(name, n_candidates=n_candidates, prior=prior, seed=seed)
    what = f"predictor {type(predictor).__name__}"
    if missing := [name for name in _METHODS if not callable(getattr(predictor, name, None))]:
        raise ConfigurationError(
            f"{what} has no {' and no '.join(missing)}; see optllm_router.Predictor"
        )
    for name in _METHODS:
        _check_arguments(predictor, name)
    try:
        as_given = copy.deepcopy(predictor)
    except TypeError as error:
        raise ConfigurationError(
            f"{what} cannot be copied ({error}); give it a __deepcopy__, as refits are of copies"
        ) from error
    shape = np.shape(as_given.predict([""]).p)
    if shape != (1, n_candidates):
        raise ConfigurationError(
            f"{what} predicts {shape} for a text where there are {n_candidates} candidates; make "
            "one for as many, in their order"
        )
    return lambda: copy.deepcopy(as_given)


def _check_arguments(predictor: Predictor, name: str) -> None:
    try:
        signature = inspect.signature(getattr(predictor, name))
    except ValueError:
        return  # compiled methods need not say what they take
    try:
        signature.bind(*_METHODS[name])
    except TypeError:
        raise ConfigurationError(
            f"predictor {type(predictor).__name__}.{name}{signature} cannot be called with "
            f"({', '.join(_METHODS[name])}); see optllm_router.Predictor"
        ) from None
