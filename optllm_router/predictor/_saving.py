"""Fitted predictors as files: one ``.npz`` of plain arrays and a JSON header, no pickle.

A loaded predictor predicts bit for bit what the saved one did. Texts are never stored: by their
digests they are known again; what was learnt since the last fit is kept as features and residuals.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._errors import InvalidDataError
from optllm_router.features import N_DIRECTIONS, TextFeaturizer
from optllm_router.predictor._naming import make_predictor
from optllm_router.predictor._recent import Recent
from optllm_router.predictor._repeats import Repeats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router.predictor._text_predictor import TextPredictor

FORMAT = 3
"""Version of the file format; files of another version are refused."""

_HEADER = "header"


def save_predictor(predictor: TextPredictor, path: str | os.PathLike[str]) -> None:
    """Write a predictor to ``path``, a file of numpy's ``.npz`` format.

    The file is written beside it and then takes its place: whoever reads finds the one that was
    there before or the whole new one, whatever happens meanwhile.

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
    unfinished = f"{os.fspath(path)}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        with open(unfinished, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(unfinished)
        raise


def load_predictor(path: str | os.PathLike[str]) -> TextPredictor:
    """Read a predictor that :func:`save_predictor` wrote.

    Raises:
        InvalidDataError: when the file is damaged, or not one of ours.
        OSError: when the file cannot be read.
    """
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            return _restored(arrays)
        except (
            Exception
        ) as error:  # damage shows in a dozen ways, from zlib.error to ZeroDivisionError
            raise InvalidDataError(
                f"{path} is not a saved predictor, or is damaged ({error}); fit and save it again"
            ) from error


def _restored(arrays: dict[str, NDArray[Any]]) -> TextPredictor:
    for name, array in arrays.items():
        endless = name.endswith(".threshold")  # a leaf's
        if (
            array.dtype.kind not in "fiub"
            or not (np.isfinite(array) | (endless & ~np.isnan(array))).all()
        ):
            raise ValueError(f"{name} holds what is no finite number")
    header = json.loads(arrays[_HEADER].tobytes())
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']}, expected {FORMAT}")
    np.random.default_rng(header["seed"])  # raises for what cannot be one
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
    _check(predictor)
    return predictor


def _check(predictor: TextPredictor) -> None:
    """Raises when its parts do not fit together, or predict what is no probability."""
    k = predictor.n_candidates
    if predictor.recent_.inertia.shape != (k,):
        raise ValueError(f"what it learnt last is not of {k} candidates")
    if predictor.recent_.features.shape[1] != (N_DIRECTIONS if predictor.featurizer_ else 0):
        raise ValueError("what it learnt last has other features")
    said = [(predictor.base_, predictor.base_std_)]
    said += [(one.p[0], one.std[0]) for one in map(predictor.predict, ([""], ["a b"]))]
    for p, std in said:
        if p.shape != (k,) or std.shape != (k,):
            raise ValueError(f"it predicts for {len(p)} candidates, not {k}")
        if not (np.all((p >= 0.0) & (p <= 1.0)) and np.all(std >= 0.0)):
            raise ValueError("it predicts what is no probability")


def _prefixed(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {prefix + name: array for name, array in arrays.items()}


def _part(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
