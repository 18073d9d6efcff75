"""Small folders of recorded outcomes, written by the tests."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest


@pytest.fixture
def write_folder(tmp_path):
    """Write a folder from rows; every cell is text as it should stand in the file."""

    def write(queries, outcomes, name="toy") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for stem, rows in (("queries", queries), ("outcomes", outcomes)):
            if rows is not None:
                with (folder / f"{stem}.csv").open("w", encoding="utf-8", newline="") as file:
                    csv.writer(file).writerows(rows)
        return folder

    return write


@pytest.fixture
def toy_folder(write_folder):
    """Four queries, a cheap and a dear model, every pair recorded."""
    queries = [["id", "task", "query"], *[[f"q{i}", "t", f"question {i}"] for i in range(4)]]
    outcomes = [["id", "model", "score", "cost_usd"]]
    # cheap is right on q0 alone; dear on q0, q1, q2.
    for i, (cheap, dear) in enumerate([(1, 1), (0, 1), (0, 1), (0, 0)]):
        outcomes += [[f"q{i}", "cheap", cheap, 1], [f"q{i}", "dear", dear, 3]]
    return write_folder(queries, outcomes)


@pytest.fixture
def logpai() -> Path:
    """The recorded outcomes of the paper's log-parsing benchmark, where they are at hand."""
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("OPTLLM_DATA", root / ".." / "shared" / "data")) / "logpai"
    if not folder.is_dir():
        pytest.skip("no recorded outcomes at hand; set OPTLLM_DATA to their folder")
    return folder
