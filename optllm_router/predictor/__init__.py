"""Which candidate answers which text correctly: prediction from few and partial labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optllm_router._errors import ConfigurationError
from optllm_router.predictor._blend import Blend
from optllm_router.predictor._text_predictor import TextPredictor

if TYPE_CHECKING:
    from optllm_router._types import FloatArray

__all__ = ["PREDICTORS", "make_predictor"]

PREDICTORS = ("auto", "bagged_forest", "knn", "clusters", "base_rates")


def make_predictor(
    name: str = "auto", *, n_candidates: int, prior: FloatArray | None = None, seed: int = 0
) -> TextPredictor:
    """A predictor by name, ready to predict its prior and to be fitted."""
    if name not in PREDICTORS:
        raise ConfigurationError(
            f"no predictor is called {name!r}; choose one of {', '.join(PREDICTORS)}"
        )
    return TextPredictor(Blend(seed), n_candidates=n_candidates, prior=prior, seed=seed)
