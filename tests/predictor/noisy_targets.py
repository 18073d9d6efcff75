"""Targets that follow the signs of features, with noise."""

import numpy as np


def data(n=200, k=3, seed=0):
    """Features, shape (n, 6), and k targets of 0 or 1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    targets = (x[:, :k] + 0.3 * rng.normal(size=(n, k)) > 0).astype(float)
    return x, targets
