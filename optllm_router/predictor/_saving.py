"""Fitted predictors as files: one ``.npz`` of plain arrays and a JSON header, no pickle.

A loaded predictor predicts bit for bit what the saved one did. Texts are never stored: by their
digests they are known again; what was learnt since the last fit is kept as features and residuals.
"""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._errors import InvalidDataError
from optllm_router.features import TextFeaturizer
from optllm_router.predictor._naming import make_predictor
from optllm_router.predictor._recent import Recent
from optllm_router.predictor._repeats import Repeats

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from optllm_router.predictor._text_predictor import TextPredictor

FORMAT = 2
"""Version of the file format; files of another version are refused."""

_HEADER = "header"


def save_predictor(predictor: TextPredictor, path: str | PathLike[str]) -> None:
    """Write a predictor to ``path``, a file of numpy's ``.npz`` format.

    Raises:
        OSError: when the file cannot be written.
    """
    predictor.predict([])  # so that scores still waiting are features and residuals
    header = {
        "format": FORMAT,
        "name": predictor.name,
        "n_candidates": predictor.n_candidates,
        "prior": None if predictor.prior is None else np.asarray(predictor.prior).tolist(),
        "seed": predictor.seed,
        "fitted": predictor.featurizer_ is not None,
    }
    arrays: dict[str, Any] = {
        _HEADER: np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
        "base": predictor.base_,
        "base_std": predictor.base_std_,
        **_prefixed("recent.", predictor.recent_.arrays()),
        **_prefixed("repeats.", predictor.repeats_.arrays()),
    }
    if predictor.featurizer_ is not None:
        arrays.update(_prefixed("features.", predictor.featurizer_.arrays()))
        arrays.update(_prefixed("model.", predictor.model.arrays()))
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def load_predictor(path: str | PathLike[str]) -> TextPredictor:
    """Read a predictor that :func:`save_predictor` wrote.

    Raises:
        InvalidDataError: when the file is damaged, or not one of ours.
        OSError: when the file cannot be read.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return _restored(arrays)
    except (ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidDataError(
            f"{path} is not a saved predictor, or is damaged ({error}); fit and save it again"
        ) from error


def _restored(arrays: dict[str, NDArray[Any]]) -> TextPredictor:
    header = json.loads(arrays[_HEADER].tobytes())
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']}, expected {FORMAT}")
    prior = None if header["prior"] is None else np.array(header["prior"])
    predictor = make_predictor(
        header["name"], n_candidates=header["n_candidates"], prior=prior, seed=header["seed"]
    )
    predictor.base_, predictor.base_std_ = arrays["base"], arrays["base_std"]
    predictor.recent_ = Recent.restored(_part("recent.", arrays))
    predictor.repeats_ = Repeats.restored(_part("repeats.", arrays))
    if header["fitted"]:
        predictor.featurizer_ = TextFeaturizer(header["seed"]).restore(_part("features.", arrays))
        predictor.model.restore(_part("model.", arrays))
    predictor.predict([""])  # raises when its parts do not fit together
    return predictor


def _prefixed(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {prefix + name: array for name, array in arrays.items()}


def _part(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
