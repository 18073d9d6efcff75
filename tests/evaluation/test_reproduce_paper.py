import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reproduce_paper.py"


@pytest.fixture
def example():
    return runpy.run_path(str(EXAMPLE))


def test_the_papers_figures_stand_beside_ours(example, write_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    rng = np.random.default_rng(4)
    outcomes = [["id", "model", "score", "cost_usd"]]
    for i in range(60):
        for model, cost, rate in (("small", 1, 0.3 + 0.5 * (i % 2)), ("large", 3, 0.8)):
            outcomes.append([f"q{i}", model, int(rng.random() < rate), cost])
    queries = [
        ["id", "task", "query"],
        *[[f"q{i}", "t", f"{'even' if i % 2 else 'odd'} line {i}"] for i in range(60)],
    ]
    assert example["main"]([str(write_folder(queries, outcomes)), "--labels", "0.5"]) == 0
    printed = capsys.readouterr().out
    for word in ("49.18 %", "18.14", "max accuracy", "What differs"):
        assert word in printed


def test_a_users_mistake_is_one_line_and_no_traceback(example, tmp_path, capsys):
    assert example["main"]([str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: no folder")
    assert error.count("\n") == 1
