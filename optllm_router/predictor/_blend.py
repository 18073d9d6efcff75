"""The default: a blend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optllm_router._types import Prediction
from optllm_router.predictor._forest import Forest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray
    from optllm_router.predictor._base import Arrays, Features


class Blend:
    """Two forests, half and half."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, x: Features, scores: FloatArray, base: FloatArray) -> Blend:
        """Fit both."""
        self.forests_ = [
            Forest(min_leaf=leaf, n_trees=60, seed=self.seed).fit(x, scores, base)
            for leaf in (2, 10)
        ]
        return self

    def predict(self, x: Features) -> Prediction:
        """Average both."""
        said = [forest.predict(x) for forest in self.forests_]
        return Prediction(
            np.mean([s.p for s in said], axis=0), np.mean([s.std for s in said], axis=0)
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything learnt, as arrays by name."""
        return {
            f"{i}.{name}": array
            for i, forest in enumerate(self.forests_)
            for name, array in forest.arrays().items()
        }

    def restore(self, arrays: Arrays) -> Blend:
        """Become the blend that ``arrays`` came from."""
        self.forests_ = [
            Forest().restore(
                {n.partition(".")[2]: a for n, a in arrays.items() if n.startswith(f"{i}.")}
            )
            for i in range(2)
        ]
        return self
