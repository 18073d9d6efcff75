"""Recorded outcomes: what each model answered to each query, what it cost, how good it was.

A folder on disk holds two tables, plain or gzipped:

``queries.csv``
    ``id, task, query`` and optionally ``reference``; one row per query.
``outcomes.csv``
    ``id, model, score`` with score in 0..1 and optionally ``prompt_tokens,
    completion_tokens, cost_usd, answer``; one row per (query, model) that was recorded. Pairs
    may be missing, and so may single values of the optional columns.

:func:`load_recorded` reads it into arrays and refuses what cannot be true, with the file, the
line and the value. A quarter of a million rows load in about a second: whole columns are
converted and checked at once, and a line is only looked for when a check has failed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optllm_router._errors import ConfigurationError, InvalidDataError
from optllm_router.evaluation._csv import Table, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray

__all__ = ["RecordedOutcomes", "load_recorded"]


_MOST_USD, _MOST_TOKENS = 1e6, 1e9


@dataclass(frozen=True, eq=False)
class RecordedOutcomes:
    """n queries, k models, and what happened when each was asked.

    Attributes:
        name: of the folder.
        ids: n distinct ids, in the order of the file.
        tasks: n task names, for grouping only.
        queries: n texts as they were sent.
        references: n reference answers, or None when the folder has none.
        models: k names, in order of first appearance.
        score: shape (n, k), 0..1; NaN where a pair was not recorded.
        cost: shape (n, k), USD; NaN where unknown.
        prompt_tokens: shape (n, k); NaN where unknown.
        completion_tokens: shape (n, k); NaN where unknown.
        answers: per query, the answer of each model that has one; None when the folder has none.
    """

    name: str
    ids: Sequence[str]
    tasks: Sequence[str]
    queries: Sequence[str]
    references: Sequence[str] | None
    models: tuple[str, ...]
    score: FloatArray
    cost: FloatArray
    prompt_tokens: FloatArray
    completion_tokens: FloatArray
    answers: Sequence[Mapping[str, str]] | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Shape (n,), whether every model's score and cost of the query are known."""
        return np.asarray(~np.isnan(self.score + self.cost).any(axis=1))

    def select(self, rows: IntArray) -> RecordedOutcomes:
        """The same models on the queries with these row numbers, in this order."""

        def picked(values: Sequence[str]) -> list[str]:
            return [values[row] for row in rows]

        return replace(
            self,
            ids=picked(self.ids),
            tasks=picked(self.tasks),
            queries=picked(self.queries),
            references=None if self.references is None else picked(self.references),
            score=self.score[rows],
            cost=self.cost[rows],
            prompt_tokens=self.prompt_tokens[rows],
            completion_tokens=self.completion_tokens[rows],
            answers=None if self.answers is None else [self.answers[row] for row in rows],
        )


def load_recorded(path: str | Path, limit: int | None = None) -> RecordedOutcomes:
    """Read a folder of recorded outcomes.

    Args:
        path: the folder with ``queries.csv`` and ``outcomes.csv``, plain or ``.gz``.
        limit: keep the first so many queries of the file; all are read and checked.

    Raises:
        ConfigurationError: when ``limit`` is below one.
        InvalidDataError: when the folder, a file or a column is missing, a file cannot be
            read, or a value cannot be what it claims: an id twice, a pair twice, an outcome
            of an unknown id, a score outside 0..1, a cost or token count that is negative,
            absurdly large or no number. Names the file, the line and the value.
    """
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit is {limit}; give a number of queries above zero")
    folder = Path(path)
    if not folder.is_dir():
        raise InvalidDataError(
            f"no folder {str(folder)!r}; give the folder that holds queries.csv and outcomes.csv"
        )
    queries = read_table(folder, "queries", required=("id", "task", "query"))
    outcomes = read_table(folder, "outcomes", required=("id", "model", "score"))
    recorded = _assemble(folder.resolve().name, queries, outcomes)
    if limit is None or limit >= len(recorded):
        return recorded
    return recorded.select(np.arange(limit))


def _assemble(name: str, queries: Table, outcomes: Table) -> RecordedOutcomes:
    ids = queries.column("id")
    row_of = {id_: row for row, id_ in enumerate(ids)}
    if len(row_of) < len(ids):
        row = _first_repeated(ids)
        raise queries.error(row, f"id {ids[row]!r} appears twice; give every query its own id")
    models = tuple(dict.fromkeys(outcomes.column("model")))
    at = _positions(outcomes, row_of, models)
    shape = (len(ids), len(models))
    return RecordedOutcomes(
        name=name,
        ids=ids,
        tasks=queries.column("task"),
        queries=queries.column("query"),
        references=queries.column("reference") if "reference" in queries else None,
        models=models,
        score=_matrix(shape, at, _scores(outcomes)),
        cost=_matrix(shape, at, _amounts(outcomes, "cost_usd", most=_MOST_USD)),
        prompt_tokens=_matrix(shape, at, _amounts(outcomes, "prompt_tokens", most=_MOST_TOKENS)),
        completion_tokens=_matrix(
            shape, at, _amounts(outcomes, "completion_tokens", most=_MOST_TOKENS)
        ),
        answers=_answers(outcomes, row_of) if "answer" in outcomes else None,
    )


def _positions(outcomes: Table, row_of: Mapping[str, int], models: Sequence[str]) -> IntArray:
    """Where each outcome belongs in the flattened (n, k) matrix; every place at most once."""
    ids, names = outcomes.column("id"), outcomes.column("model")
    rows = np.array([row_of.get(id_, -1) for id_ in ids], dtype=np.int64)
    if (rows < 0).any():
        at = int(np.argmax(rows < 0))
        raise outcomes.error(
            at, f"id {ids[at]!r} is not in the queries file; add the query or remove the outcome"
        )
    if "" in models:
        raise outcomes.error(names.index(""), "the model has no name; fill in the column 'model'")
    column_of = {model: column for column, model in enumerate(models)}
    columns = np.array([column_of[model] for model in names], dtype=np.int64)
    flat = rows * len(models) + columns
    if np.unique(flat).size < flat.size:
        at = _first_repeated(flat.tolist())
        raise outcomes.error(
            at, f"a second outcome of {names[at]!r} for id {ids[at]!r}; keep one of them"
        )
    return flat


def _scores(outcomes: Table) -> FloatArray:
    score = outcomes.numbers("score", required=True)
    wrong = ~((score >= 0) & (score <= 1))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise outcomes.error(
            at,
            f"score {outcomes.column('score')[at]!r} is not in 0..1; scale it, or leave the row "
            "out if the answer was not graded",
        )
    return score


def _amounts(outcomes: Table, column: str, *, most: float) -> FloatArray:
    """A column of amounts in 0..most, NaN where empty; all NaN where there is no such column."""
    if column not in outcomes:
        return np.full(len(outcomes), np.nan)
    amount = outcomes.numbers(column)
    wrong = (amount < 0) | (amount > most)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise outcomes.error(
            at,
            f"{column} {outcomes.column(column)[at]!r} is not a finite amount from 0 to "
            f"{most:,.0f}; correct it, or leave it empty if it is unknown",
        )
    return amount


def _matrix(shape: tuple[int, int], flat: IntArray, values: FloatArray) -> FloatArray:
    matrix = np.full(shape[0] * shape[1], np.nan)
    matrix[flat] = values
    return matrix.reshape(shape)


def _answers(outcomes: Table, row_of: Mapping[str, int]) -> list[dict[str, str]]:
    answers: list[dict[str, str]] = [{} for _ in row_of]
    columns = (outcomes.column(name) for name in ("id", "model", "answer"))
    for id_, model, answer in zip(*columns, strict=True):
        answers[row_of[id_]][model] = answer
    return answers


def _first_repeated(values: Sequence[object]) -> int:
    seen: set[object] = set()
    for position, value in enumerate(values):
        if value in seen:
            return position
        seen.add(value)
    raise AssertionError("called only when a value repeats")
