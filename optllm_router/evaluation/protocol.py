"""The evaluation protocol: recorded outcomes in, comparable figures out.

One run labels a seeded part of the queries, lets each method predict the rest and build its
front, and pays every point of every front with the *recorded* scores and costs. What the
figures mean:

best single
    the model with the highest accuracy A* on the test set, and its cost C* there. It is
    chosen in hindsight, so parity with it is harder than with any model picked beforehand.
savings at parity, max accuracy
    over the true accuracies of the points of the front.
AUC
    mean true accuracy over 300 equally spaced budgets from the all-cheapest cost to C*. The
    allocation at a budget is the last point of the front, walked from its cheap end, before
    the amount paid exceeds the budget; only predictions decide what the points are.
gap closed
    ``(AUC - AUC of static) / (AUC of oracle - AUC of static)``.
deployed
    what the policy ``match_best`` picks without seeing a test label: its accuracy minus A*,
    and its cost over C*.
IGD, spread
    distances in (USD, accuracy) between the front, as paid, and the oracle's.

Costs are the recorded ones. With ``cost="predicted"`` the methods allocate with costs
predicted from the labelled part and still pay the recorded ones. ``static`` and ``oracle`` keep
the recorded costs, so that gap closed is measured on the same scale and the difference between
the two runs is what cost prediction loses.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from optllm_router import metrics
from optllm_router._errors import ConfigurationError
from optllm_router.evaluation.costs import predict_costs
from optllm_router.evaluation.judge import Curve, Headline, Judge, References, SingleModel
from optllm_router.evaluation.methods import METHODS, Front, Method, Steps, TimedPrediction
from optllm_router.evaluation.split import Split, split_recorded
from optllm_router.policy import match_best_allocation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.evaluation.dataset import RecordedOutcomes

__all__ = ["CostSource", "Evaluation", "Figures", "MethodResult", "Progress", "Run", "evaluate"]

REFERENCES = {name: METHODS[name] for name in ("static", "oracle")}
"""What the other methods are measured against; they always know the recorded costs."""

CostSource: TypeAlias = Literal["recorded", "predicted"]
Progress: TypeAlias = "Callable[[str, int, int], None]"


@dataclass(frozen=True)
class Figures(Headline):
    """What one method achieved; None where a figure does not apply. See the module."""

    brier: float | None
    ece: float | None
    igd: float
    spread: float | None
    fit_seconds: float | None
    predict_seconds: float | None
    solve_seconds: float


@dataclass(frozen=True, eq=False)
class Run:
    """What one method did.

    Attributes:
        method: which.
        timed: its prediction for the test set.
        front: the front it built with the costs it knew.
        deployed: shape (n_test,), the allocation that ``match_best`` picked; None where that
            policy does not apply.
        solve_seconds: to build the front.
    """

    method: Method
    timed: TimedPrediction
    front: Front
    deployed: IntArray | None
    solve_seconds: float


@dataclass(frozen=True, eq=False)
class MethodResult:
    """One method's figures, and what they were computed from.

    Attributes:
        run: what it did.
        curve: its front at the true scores and costs.
        figures: what it achieved.
        gap_closed_knowing_costs: the gap it would have closed with the recorded costs; None
            where it had them, or where solving once more would take long.
    """

    run: Run
    curve: Curve
    figures: Figures
    gap_closed_knowing_costs: float | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One run of the protocol.

    Attributes:
        dataset: name of the folder.
        split: the labelled part and the test set.
        allocation_cost: shape (n_test, k), the costs that were allocated with.
        costs_predicted: whether these were predicted, and not the recorded ones.
        singles: every model on its own on the test set.
        best_single: the best of them, the reference of parity.
        methods: results by name, in the order asked for.
    """

    dataset: str
    split: Split
    allocation_cost: FloatArray
    costs_predicted: bool
    singles: tuple[SingleModel, ...]
    best_single: SingleModel
    methods: Mapping[str, MethodResult]

    def to_dict(self) -> dict[str, Any]:
        """The figures as the object that ``optllm evaluate --json`` prints."""
        return {
            "dataset": self.dataset,
            "labels": self.split.labels,
            "seed": self.split.seed,
            "cost": "predicted" if self.costs_predicted else "recorded",
            "n_train": len(self.split.train),
            "n_test": len(self.split.test),
            "n_dropped": self.split.n_dropped,
            "best_single": asdict(self.best_single),
            "methods": {
                name: {
                    **asdict(result.figures),
                    "gap_closed_knowing_costs": result.gap_closed_knowing_costs,
                }
                for name, result in self.methods.items()
            },
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as text; a NaN in it is a defect and raises ValueError."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def evaluate(
    recorded: RecordedOutcomes,
    *,
    labels: float,
    seed: int = 0,
    cost: CostSource = "recorded",
    methods: Sequence[Method] = (METHODS["optllm"],),
    confidence: float = 0.95,
    progress: Progress | None = None,
) -> Evaluation:
    """Run the protocol once.

    Args:
        recorded: the outcomes.
        labels: share of the queries to learn from, 0 <= labels < 1.
        seed: of the split and of whatever the methods draw.
        cost: allocate with the ``recorded`` or with ``predicted`` costs.
        methods: to compare; ``static`` and ``oracle`` are always added, the rest is measured
            against them.
        confidence: of the policy ``match_best``.
        progress: called with what is being done, how many steps are done, and of how many.

    Raises:
        ConfigurationError: when an argument is out of range.
        InvalidDataError: when nothing can be evaluated; see :func:`split_recorded`.
    """
    if cost not in ("recorded", "predicted"):
        raise ConfigurationError(f"cost is {cost!r}; choose 'recorded' or 'predicted'")
    split = split_recorded(recorded, labels=labels, seed=seed)
    known = known_costs(split, cost)
    return evaluate_split(
        split,
        known,
        methods,
        predicted=cost == "predicted",
        confidence=confidence,
        progress=progress,
    )


def evaluate_split(
    split: Split,
    known: FloatArray,
    methods: Sequence[Method],
    *,
    predicted: bool,
    confidence: float,
    progress: Progress | None = None,
) -> Evaluation:
    """Run the protocol on a split that is made, with costs that are known; see :func:`evaluate`.

    Args:
        split: the labelled part and the test set.
        known: shape (n_test, k), the costs to allocate with, see :func:`known_costs`.
        methods: as there.
        predicted: whether these costs were predicted.
        confidence: as there.
        progress: as there.
    """
    report, test = progress or _silent, split.test
    wanted = {method.name: method for method in methods} | REFERENCES
    runs: dict[str, Run] = {}
    for step, (name, method) in enumerate(wanted.items()):
        report(name, step, len(wanted))
        cost = test.cost if name in REFERENCES else known
        steps = partial(_report_step, report, name, step, len(wanted))
        runs[name] = _run(method, split, cost, confidence, steps)
    report("figures", len(wanted), len(wanted))
    judge = Judge(test)
    references = judge.references(static=runs["static"].front, oracle=runs["oracle"].front)
    true_front = judge.curve(runs["oracle"].front)
    return Evaluation(
        dataset=test.name,
        split=split,
        allocation_cost=known,
        costs_predicted=predicted,
        singles=judge.singles,
        best_single=judge.best,
        methods={
            name: _judged(
                run, judge, test, references, true_front, again=predicted and name not in REFERENCES
            )
            for name, run in runs.items()
        },
    )


def known_costs(split: Split, cost: CostSource) -> FloatArray:
    """What the methods allocate with, shape (n_test, k), USD."""
    if cost == "recorded":
        return split.test.cost
    return predict_costs(split.train, split.test.queries, seed=split.seed)


def _report_step(report: Progress, name: str, place: int, total: int, done: int, of: int) -> None:
    """A step of a solver, as progress of the methods, of which ``place`` are finished."""
    report(f"{name}, step {done} of {of}", place, total)


def _run(method: Method, split: Split, cost: FloatArray, confidence: float, steps: Steps) -> Run:
    timed = method.predict(split)
    prediction = timed.prediction
    started = time.perf_counter()
    front = method.solve(prediction, cost, **({"progress": steps} if method.reports else {}))
    solve_seconds = time.perf_counter() - started
    deployed = None
    if method.deployable:
        deployed = match_best_allocation(prediction.p, prediction.std, cost, confidence)
    return Run(method, timed, front, deployed, solve_seconds)


def _judged(
    run: Run,
    judge: Judge,
    test: RecordedOutcomes,
    references: References,
    true_front: Curve,
    *,
    again: bool,
) -> MethodResult:
    """What a run achieved; ``again`` as if it had known the recorded costs, too."""
    curve = judge.curve(run.front)
    p, claims = run.timed.prediction.p, run.timed.claims
    figures = Figures(
        **vars(judge.headline(curve, run.deployed, references)),
        brier=metrics.brier_score(p, test.score) if claims else None,
        ece=metrics.expected_calibration_error(p, test.score) if claims else None,
        igd=metrics.inverted_generational_distance(curve.points, true_front.points),
        spread=metrics.spread(curve.points, true_front.points),
        fit_seconds=run.timed.fit_seconds,
        predict_seconds=run.timed.predict_seconds,
        solve_seconds=run.solve_seconds,
    )
    knowing = _gap_knowing_costs(run, judge, test, references) if again else None
    return MethodResult(run, curve, figures, knowing)


def _gap_knowing_costs(
    run: Run, judge: Judge, test: RecordedOutcomes, references: References
) -> float | None:
    """The gap that the same predictions close with the recorded costs."""
    if run.method.reports:  # a search of minutes
        return None
    front = run.method.solve(run.timed.prediction, test.cost)
    return judge.headline(judge.curve(front), None, references).gap_closed


def _silent(step: str, done: int, total: int) -> None:
    """Report to nobody."""
