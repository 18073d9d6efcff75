"""Offline evaluation on recorded outcomes: load, evaluate, compare, render.

>>> from optllm_router.evaluation import evaluate, load_recorded
>>> recorded = load_recorded("path/to/folder")  # doctest: +SKIP
>>> print(evaluate(recorded, labels=0.02).to_json())  # doctest: +SKIP
"""

from optllm_router.evaluation.comparison import Comparison, Part, Setting, compare, summarise
from optllm_router.evaluation.dataset import RecordedOutcomes, load_recorded
from optllm_router.evaluation.dump import check_dump, write_dump
from optllm_router.evaluation.figures import (
    Point,
    Series,
    can_draw,
    check_figure,
    draw_comparison,
    draw_evaluation,
    draw_front,
)
from optllm_router.evaluation.kept import KeptParts
from optllm_router.evaluation.methods import METHODS, Method, methods_named
from optllm_router.evaluation.protocol import Evaluation, evaluate
from optllm_router.evaluation.report import check_report, write_report
from optllm_router.evaluation.split import Split, split_recorded
from optllm_router.evaluation.tables import comparison_table, evaluation_table

__all__ = [
    "METHODS",
    "Comparison",
    "Evaluation",
    "KeptParts",
    "Method",
    "Part",
    "Point",
    "RecordedOutcomes",
    "Series",
    "Setting",
    "Split",
    "can_draw",
    "check_dump",
    "check_figure",
    "check_report",
    "compare",
    "comparison_table",
    "draw_comparison",
    "draw_evaluation",
    "draw_front",
    "evaluate",
    "evaluation_table",
    "load_recorded",
    "methods_named",
    "split_recorded",
    "summarise",
    "write_dump",
    "write_report",
]
