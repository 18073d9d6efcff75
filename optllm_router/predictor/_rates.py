"""Base rates alone: how good each candidate is on average, blind to the query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._types import Prediction

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray
    from optllm_router.predictor._base import Arrays, Features


class BaseRates:
    """Says each candidate's base rate, whatever the query."""

    def fit(self, x: Features, scores: FloatArray, base: FloatArray) -> BaseRates:
        """Keep the base rates."""
        self.base_ = base
        return self

    def predict(self, x: Features) -> Prediction:
        """The base rates n times; their own uncertainty is added by the caller."""
        p = np.tile(self.base_, (len(x), 1))
        return Prediction(p, np.zeros_like(p))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What prediction needs, as arrays by name."""
        return {"base": self.base_}

    def restore(self, arrays: Arrays) -> BaseRates:
        """Become the model that ``arrays`` came from."""
        self.base_ = arrays["base"]
        return self
