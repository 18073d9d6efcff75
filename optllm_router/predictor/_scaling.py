"""Features on one scale, for the models that measure distances."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from optllm_router.predictor._base import Arrays, Features

_MOST = 4.0
"""Standard deviations at which features are clipped: one outlier must not decide a distance."""


class Scaling(NamedTuple):
    """Mean and standard deviation of each feature, shape (n_features,) each."""

    mean: Features
    std: Features

    @classmethod
    def of(cls, x: Features) -> Scaling:
        """The scaling of graded queries; features that never change are left alone."""
        std = x.std(axis=0)
        return cls(x.mean(axis=0), np.where(std > 1e-6, std, 1.0).astype(np.float32))

    @classmethod
    def restored(cls, arrays: Arrays) -> Scaling:
        """The scaling that was stored as ``mean`` and ``std``."""
        return cls(arrays["mean"], arrays["std"])

    def apply(self, x: Features) -> Features:
        """Standardised and clipped features, shape (n, n_features), float32."""
        scaled = (x - self.mean) / self.std
        return np.asarray(np.clip(scaled, -_MOST, _MOST), dtype=np.float32)
