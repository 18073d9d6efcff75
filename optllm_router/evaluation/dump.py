"""What a method predicted, in a file from which anyone can rescore it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optllm_router._errors import ConfigurationError

if TYPE_CHECKING:
    from optllm_router.evaluation.protocol import Evaluation

__all__ = ["check_dump", "write_dump"]


def check_dump(path: Path) -> None:
    """Find out before long work whether :func:`write_dump` will be able to write.

    Raises:
        ConfigurationError: when the file does not end in ``.npz``, or its folder does not exist.
    """
    if path.suffix != ".npz":
        raise ConfigurationError(f"dump file {str(path)!r} must end in .npz")
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"cannot write dump file {str(path)!r}: there is no folder {str(path.parent)!r}"
        )


def write_dump(evaluation: Evaluation, path: str | Path, *, method: str = "optllm") -> Path:
    """Write ``train_ids, test_ids, models, p, std, cost`` as an uncompressed ``.npz``.

    ``p``, ``std`` and ``cost`` are (n_test, k) with rows as in ``test_ids`` and columns as in
    ``models``; ``cost`` is what was allocated with, in USD. The file holds no pickles:
    ``numpy.load(path)`` reads it as it is.

    Args:
        evaluation: the run.
        path: of the file; must end in ``.npz`` and lie in a folder that exists.
        method: whose prediction to write.

    Raises:
        ConfigurationError: when the path cannot be written or there is no such method.
    """
    path = Path(path)
    check_dump(path)
    if method not in evaluation.methods:
        raise ConfigurationError(
            f"no method {method!r} in this run; choose one of {', '.join(evaluation.methods)}"
        )
    split, prediction = evaluation.split, evaluation.methods[method].run.timed.prediction
    try:
        np.savez(
            path,
            train_ids=np.array(split.train.ids, dtype=np.str_),
            test_ids=np.array(split.test.ids, dtype=np.str_),
            models=np.array(split.test.models, dtype=np.str_),
            p=prediction.p,
            std=prediction.std,
            cost=evaluation.allocation_cost,
        )
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {str(path)!r} ({error.strerror}); choose a folder that exists and is "
            "writable"
        ) from error
    return path
