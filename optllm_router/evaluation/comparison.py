"""Many methods over several seeds: one table with intervals.

A *part* is one method on one seed. :func:`compare` yields parts as they are finished, so that an
interruption loses only the one under way, and with a file to keep them in, the next run takes up
where the last one stopped. :func:`summarise` makes a table of whatever parts there are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._errors import ConfigurationError
from optllm_router.evaluation.bootstrap import FIGURES, Estimate, Resampler, estimate
from optllm_router.evaluation.protocol import REFERENCES, Figures, evaluate_split, known_costs
from optllm_router.evaluation.split import split_recorded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from optllm_router._types import FloatArray
    from optllm_router.evaluation.dataset import RecordedOutcomes
    from optllm_router.evaluation.judge import Curve, SingleModel
    from optllm_router.evaluation.kept import KeptParts
    from optllm_router.evaluation.methods import Method, Predicting, TimedPrediction
    from optllm_router.evaluation.protocol import CostSource, Evaluation, Progress
    from optllm_router.evaluation.split import Split

__all__ = ["Comparison", "Part", "Row", "Setting", "compare", "summarise"]

PLAIN_FIGURES = (
    "brier",
    "ece",
    "igd",
    "spread",
    "fit_seconds",
    "predict_seconds",
    "solve_seconds",
)
"""The figures that are averaged over the seeds without an interval."""


@dataclass(frozen=True)
class Setting:
    """What all parts of a comparison have in common."""

    labels: float
    cost: CostSource = "recorded"
    confidence: float = 0.95
    resamples: int = 200

    def __post_init__(self) -> None:
        if self.resamples < 0:
            raise ConfigurationError(
                f"resamples is {self.resamples}; give 0 for no intervals, or some hundred"
            )


@dataclass(frozen=True, eq=False)
class Part:
    """One method on one seed.

    Attributes:
        method: its name.
        about: one line for people.
        seed: of the split.
        n_train: labelled queries.
        n_test: queries tested on.
        n_dropped: test queries left out because a pair is missing.
        singles: every model on its own on this test set.
        best_single: the best of them.
        figures: of the protocol.
        draws: shape (resamples, 6), :data:`~.bootstrap.FIGURES` on resampled test sets.
        curve: the front as it was paid.
    """

    method: str
    about: str
    seed: int
    n_train: int
    n_test: int
    n_dropped: int
    singles: tuple[SingleModel, ...]
    best_single: SingleModel
    figures: Figures
    draws: FloatArray
    curve: Curve


@dataclass(frozen=True)
class Row:
    """One method over its finished seeds.

    Attributes:
        about: one line for people.
        seeds: which are finished.
        estimates: means with intervals, by name in :data:`~.bootstrap.FIGURES`.
        means: plain means by name in :data:`PLAIN_FIGURES`; None where one does not apply.
    """

    about: str
    seeds: tuple[int, ...]
    estimates: dict[str, Estimate]
    means: dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What the finished parts say.

    Attributes:
        dataset: name of the folder.
        setting: common to all parts.
        n_train: labelled queries.
        n_test: queries tested on, in the first seed.
        n_dropped: queries left out there because a pair is missing.
        best_single: by seed.
        rows: by method, in the order they were finished.
        curves: by method, of its first finished seed, for figures.
        singles: every model on its own in the first finished seed, for figures.
        complete: False when it was interrupted before all parts were finished.
    """

    dataset: str
    setting: Setting
    n_train: int
    n_test: int
    n_dropped: int
    best_single: dict[int, SingleModel]
    rows: dict[str, Row]
    curves: dict[str, Curve]
    singles: tuple[SingleModel, ...]
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves, ready for JSON."""
        return {
            "dataset": self.dataset,
            "complete": self.complete,
            **asdict(self.setting),
            "n_train": self.n_train,
            "n_test": self.n_test,
            "best_single": {str(seed): asdict(best) for seed, best in self.best_single.items()},
            "methods": {
                name: {
                    "seeds": list(row.seeds),
                    **{figure: asdict(row.estimates[figure]) for figure in FIGURES},
                    **row.means,
                }
                for name, row in self.rows.items()
            },
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as text; a NaN in it is a defect and raises ValueError."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def compare(
    recorded: RecordedOutcomes,
    methods: Sequence[Method],
    setting: Setting,
    *,
    seeds: Sequence[int],
    kept: KeptParts | None = None,
    progress: Progress | None = None,
) -> Iterator[Part]:
    """Run the protocol for every method on every seed, and yield each part when it is finished.

    Args:
        recorded: the outcomes.
        methods: to compare; ``static`` and ``oracle`` are always among them.
        setting: common to all parts.
        seeds: of the splits.
        kept: parts of earlier runs, which are not run again; finished ones are added.
        progress: called with what is being done, how many parts are done, and of how many.

    Raises:
        ConfigurationError: when an argument is out of range.
        InvalidDataError: when nothing can be evaluated.
    """
    wanted = list(({method.name: method for method in methods} | REFERENCES).values())
    done = 0
    for seed in seeds:
        bench = _Bench(recorded, setting, seed)
        for method in wanted:
            report = partial(_report, progress, f"seed {seed}: ", done, len(seeds) * len(wanted))
            report(method.name)
            part = kept.get(seed, method.name) if kept is not None else None
            if part is None:
                part = bench.part(method, report)
                if kept is not None:
                    kept.add(part)
            yield part
            done += 1
    if progress is not None:
        progress("finished", done, done)


def _report(
    progress: Progress | None, before: str, done: int, total: int, doing: str, *_: int
) -> None:
    """What a part is doing, as progress of all parts."""
    if progress is not None:
        progress(before + doing, done, total)


class _Bench:
    """Everything that the parts of one seed share; made when the first of them needs it."""

    def __init__(self, recorded: RecordedOutcomes, setting: Setting, seed: int) -> None:
        self._recorded, self._setting, self._seed = recorded, setting, seed
        self._predictions: dict[Predicting, TimedPrediction] = {}
        self._resampler: Resampler | None = None

    @cached_property
    def _split(self) -> Split:
        return split_recorded(self._recorded, labels=self._setting.labels, seed=self._seed)

    @cached_property
    def _costs(self) -> FloatArray:
        return known_costs(self._split, self._setting.cost)

    def part(self, method: Method, progress: Progress) -> Part:
        remembered = replace(method, predict=self._remembered(method.predict))
        run = evaluate_split(
            self._split,
            self._costs,
            [remembered],
            predicted=self._setting.cost == "predicted",
            confidence=self._setting.confidence,
            progress=progress,
        )
        result = run.methods[method.name]
        resampler = self._resampler or self._new_resampler(run)
        self._resampler = resampler
        return Part(
            method=method.name,
            about=method.about,
            seed=self._seed,
            n_train=len(run.split.train),
            n_test=len(run.split.test),
            n_dropped=run.split.n_dropped,
            singles=run.singles,
            best_single=run.best_single,
            figures=result.figures,
            draws=resampler.draws(result.run.front, result.run.deployed),
            curve=result.curve,
        )

    def _new_resampler(self, run: Evaluation) -> Resampler:
        static, oracle = (run.methods[name].run.front for name in ("static", "oracle"))
        return Resampler(
            run.split.test,
            static=static,
            oracle=oracle,
            seed=self._seed,
            resamples=self._setting.resamples,
        )

    def _remembered(self, predict: Predicting) -> Predicting:
        """Methods that differ only in their solver are predicted once."""

        def remembering(split: Split) -> TimedPrediction:
            if predict not in self._predictions:
                self._predictions[predict] = predict(split)
            return self._predictions[predict]

        return remembering


def summarise(
    dataset: str, setting: Setting, parts: Sequence[Part], *, complete: bool = True
) -> Comparison:
    """Means and intervals of whatever parts are finished.

    Args:
        dataset: name of the folder.
        setting: common to all parts.
        parts: at least one, in any order.
        complete: whether these are all that were asked for.
    """
    by_method: dict[str, list[Part]] = {}
    for part in parts:
        by_method.setdefault(part.method, []).append(part)
    first = parts[0]
    return Comparison(
        dataset=dataset,
        setting=setting,
        n_train=first.n_train,
        n_test=first.n_test,
        n_dropped=first.n_dropped,
        best_single={part.seed: part.best_single for part in parts},
        rows={name: _row(own) for name, own in by_method.items()},
        curves={name: own[0].curve for name, own in by_method.items()},
        singles=first.singles,
        complete=complete,
    )


def _row(parts: Sequence[Part]) -> Row:
    return Row(
        about=parts[0].about,
        seeds=tuple(part.seed for part in parts),
        estimates={
            name: estimate(
                [_headline_value(part.figures, name) for part in parts],
                [part.draws[:, column] for part in parts],
            )
            for column, name in enumerate(FIGURES)
        },
        means={
            name: _mean([getattr(part.figures, name) for part in parts]) for name in PLAIN_FIGURES
        },
    )


def _headline_value(figures: Figures, name: str) -> float | None:
    holder = figures if hasattr(figures, name) else figures.deployed
    value: float | None = getattr(holder, name, None)
    return value


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
