import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reproduce_paper.py"


@pytest.fixture
def example():
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture
def folder(write_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    rng = np.random.default_rng(4)
    outcomes = [["id", "model", "score", "cost_usd"]]
    for i in range(60):
        for model, cost, rate in (("small", 1, 0.3 + 0.5 * (i % 2)), ("mixtral-8x7b", 3, 0.8)):
            outcomes.append([f"q{i}", model, int(rng.random() < rate), cost])
    queries = [
        ["id", "task", "query"],
        *[[f"q{i}", "t", f"{'even' if i % 2 else 'odd'} line {i}"] for i in range(60)],
    ]
    return write_folder(queries, outcomes)


def test_the_papers_figures_stand_beside_ours_on_its_data(example, folder, capsys):
    known = example["main"].__globals__
    known["PAPER_QUERIES"], known["PAPER_MODELS"] = 60, 2
    assert example["main"]([str(folder), "--labels", "0.5"]) == 0
    printed = capsys.readouterr().out
    for word in ("49.18 %", "18.14", "max accuracy", "What differs", "cost 180.00 USD with"):
        assert word in printed


def test_the_papers_figures_are_not_beside_those_of_other_data(example, folder, capsys):
    assert example["main"]([str(folder), "--labels", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "max accuracy" in printed
    assert "not the paper's LogPai benchmark" in printed
    for word in ("49.18", "18.14", "3.68", "the paper ", "What differs"):
        assert word not in printed


def test_a_users_mistake_is_one_line_and_no_traceback(example, tmp_path, capsys):
    assert example["main"]([str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: no folder")
    assert error.count("\n") == 1
