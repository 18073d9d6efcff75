"""Finished parts of a comparison in a file, so that an interrupted run can be taken up.

One JSON object per line, appended and flushed when a part is finished. The first line says what
the parts belong to (the data, by fingerprint, the setting and this package's version); parts of
anything else would be mixed up silently, so a file that begins differently is refused. A last
line that was cut off by a crash is dropped.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._errors import ConfigurationError, InvalidDataError
from optllm_router.evaluation.bootstrap import FIGURES
from optllm_router.evaluation.comparison import Part, Setting
from optllm_router.evaluation.judge import Curve, Deployed, SingleModel
from optllm_router.evaluation.protocol import Figures

if TYPE_CHECKING:
    from optllm_router.evaluation.dataset import RecordedOutcomes

__all__ = ["KeptParts"]

_FORMAT = 1
_MOST_POINTS = 1000


class KeptParts:
    """The parts in one file.

    Args:
        path: of the file; made when the first part is added.
        recorded: the data that is evaluated.
        setting: common to all parts.

    Raises:
        InvalidDataError: when the file holds something else, or parts of another run.
        ConfigurationError: when it cannot be read or written.
    """

    def __init__(self, path: str | Path, recorded: RecordedOutcomes, setting: Setting) -> None:
        self._path = Path(path)
        header = {
            "optllm_parts": _FORMAT,
            "version": version("optllm-router"),
            "data": _fingerprint(recorded),
            "setting": asdict(setting),
        }
        self._first_line = json.dumps(header) + "\n"
        self._parts: dict[tuple[int, str], Part] = {}
        self._read()

    def __len__(self) -> int:
        return len(self._parts)

    def get(self, seed: int, method: str) -> Part | None:
        """The part of this method and seed, if it is finished."""
        return self._parts.get((seed, method))

    def add(self, part: Part) -> None:
        """Keep a finished part."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                if file.tell() == 0:
                    file.write(self._first_line)
                file.write(json.dumps(_to_json(part), allow_nan=False) + "\n")
        except OSError as error:
            raise self._unusable(error) from error
        self._parts[part.seed, part.method] = part

    def _read(self) -> None:
        try:
            text = self._path.read_text("utf-8") if self._path.exists() else ""
        except OSError as error:
            raise self._unusable(error) from error
        except UnicodeDecodeError as error:
            raise self._of_something_else() from error
        if self._first_line.startswith(text):  # nothing, or what a crash left of it
            if text:
                self._path.write_text("", "utf-8")
            return
        *lines, rest = text.split("\n")
        if not lines or _parsed(lines[0]) != json.loads(self._first_line):
            raise self._of_something_else()
        for number, line in enumerate(lines[1:], start=2):
            part = _from_json(_parsed(line))
            if part is None:
                raise InvalidDataError(
                    f"{self._path}, line {number}: not a finished part; remove the line"
                )
            self._parts[part.seed, part.method] = part
        if rest:  # a crash while writing: without this the next part would join the torn line
            self._path.write_text("".join(line + "\n" for line in lines), "utf-8")

    def _of_something_else(self) -> InvalidDataError:
        return InvalidDataError(
            f"{self._path} does not hold parts of this comparison (other data, setting or "
            "version); name another file, or remove this one to start again"
        )

    def _unusable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"cannot keep parts in {str(self._path)!r} ({error.strerror}); choose a file in a "
            "folder that exists and is writable"
        )


def _fingerprint(recorded: RecordedOutcomes) -> str:
    digest = hashlib.sha256()
    for array in (
        recorded.score,
        recorded.cost,
        recorded.prompt_tokens,
        recorded.completion_tokens,
    ):
        digest.update(np.ascontiguousarray(array).tobytes())
    for texts in (recorded.models, recorded.ids, recorded.queries):
        digest.update(json.dumps(list(texts)).encode())
    return digest.hexdigest()


def _to_json(part: Part) -> dict[str, Any]:
    keep = np.unique(np.linspace(0, part.curve.cost.size - 1, _MOST_POINTS).astype(np.int64))
    draws = [[None if np.isnan(value) else float(value) for value in row] for row in part.draws]
    return {
        **{name: getattr(part, name) for name in _PLAIN},
        "singles": [asdict(single) for single in part.singles],
        "best_single": asdict(part.best_single),
        "figures": asdict(part.figures),
        "draws": draws,
        "cost": part.curve.cost[keep].tolist(),
        "accuracy": part.curve.accuracy[keep].tolist(),
    }


_PLAIN = ("method", "about", "seed", "n_train", "n_test", "n_dropped")


def _from_json(record: Any) -> Part | None:
    try:
        figures = dict(record["figures"])
        deployed = figures.pop("deployed")
        return Part(
            **{name: record[name] for name in _PLAIN},
            singles=tuple(SingleModel(**single) for single in record["singles"]),
            best_single=SingleModel(**record["best_single"]),
            figures=Figures(**figures, deployed=Deployed(**deployed) if deployed else None),
            draws=np.array(record["draws"], dtype=np.float64).reshape(-1, len(FIGURES)),
            curve=Curve(np.array(record["cost"]), np.array(record["accuracy"])),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
