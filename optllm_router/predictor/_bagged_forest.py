"""The paper's predictor, so that its results can be reproduced.

OptLLM (Liu et al., 2024, arXiv 2405.15130) draws 100 bootstrap samples of the labelled queries,
fits a multi-label random forest on each, averages what they say with weights for how well each
does, and takes the weighted standard deviation as the uncertainty; how many standard deviations
to trust is the solver's parameter alpha. The paper's labels are complete; missing ones are
imputed here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._types import Prediction
from optllm_router.predictor._forest import impute
from optllm_router.predictor._trees import Trees, flatten, leaf_outputs, outputs
from optllm_router.predictor._walking import Walker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray
    from optllm_router.predictor._base import Arrays, Features

_CHUNK_ROWS = 512
_MAX_LEAVES = 1_000
"""Leaves of a tree at most, roughly: bounds the size of what is kept."""


class BaggedForest:
    """Random forests on bootstrap samples, weighted by out-of-bag accuracy.

    Args:
        n_bootstraps: how many samples, each with its own forest.
        n_trees: trees in each forest.
        seed: of the samples and the trees.
    """

    def __init__(self, *, n_bootstraps: int = 100, n_trees: int = 3, seed: int = 0) -> None:
        self.n_bootstraps = n_bootstraps
        self.n_trees = n_trees
        self.seed = seed

    def fit(self, x: Features, scores: FloatArray, base: FloatArray) -> BaggedForest:
        """Fit one forest per bootstrap sample."""
        from sklearn.ensemble import RandomForestRegressor

        rng = np.random.default_rng(self.seed)
        complete = impute(scores, base)
        fitted: list[object] = []
        weights = np.ones((self.n_bootstraps, scores.shape[1]))
        for b in range(self.n_bootstraps):
            drawn = rng.integers(len(x), size=len(x))
            forest = RandomForestRegressor(
                self.n_trees,
                min_samples_leaf=max(2, math.ceil(len(x) / _MAX_LEAVES)),
                max_features="sqrt",
                bootstrap=False,
                random_state=int(rng.integers(2**31)),
            )
            forest.fit(x[drawn], outputs(complete[drawn]))
            fitted.extend(estimator.tree_ for estimator in forest.estimators_)
            left_out = np.setdiff1d(np.arange(len(x)), drawn)
            if len(left_out):
                said = forest.predict(x[left_out]).reshape(len(left_out), -1)
                weights[b] = 1.0 - np.mean((said - complete[left_out]) ** 2, axis=0)
        self.weights_ = weights / weights.sum(axis=0)
        self.trees_ = flatten(fitted)
        self.values_ = leaf_outputs(fitted)
        self._walker = Walker(self.trees_)
        return self

    def predict(self, x: Features) -> Prediction:
        """Weighted mean and weighted standard deviation over the forests."""
        leaves = self._walker.leaves(x)
        n, k = len(x), self.values_.shape[1]
        p, std = np.empty((n, k)), np.empty((n, k))
        for start in range(0, n, _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            said = self.values_[leaves[rows]].reshape(-1, len(self.weights_), self.n_trees, k)
            votes = said.mean(axis=2, dtype=np.float64)
            mean = np.einsum("nbk,bk->nk", votes, self.weights_)
            square = np.einsum("nbk,bk->nk", votes**2, self.weights_)
            std[rows] = np.sqrt(np.maximum(square - mean**2, 0.0))
            p[rows] = np.clip(mean, 0.0, 1.0)
        return Prediction(p, std)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What prediction needs, as arrays by name."""
        return {**self.trees_.arrays(), "values": self.values_, "weights": self.weights_}

    def restore(self, arrays: Arrays) -> BaggedForest:
        """Become the model that ``arrays`` came from."""
        self.trees_ = Trees.restored(arrays)
        self.values_ = self.trees_.values_in(arrays)
        self.weights_ = arrays["weights"]
        self.n_bootstraps = len(self.weights_)
        self.n_trees = len(self.trees_.roots) // self.n_bootstraps
        self._walker = Walker(self.trees_)
        return self
