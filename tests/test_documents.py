"""What the documents say is what the program does: their code runs, their commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from optllm_router.cli import commands
from optllm_router.simulation import SIMULATED_MODELS, SimulatedModel, SimulationServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def openai_at_home():
    """A server that simulates models under the names that the README uses."""
    skill = SIMULATED_MODELS[0].skill
    names = ("gpt-4o", "gpt-4o-mini", "gpt-4.1-nano")
    with SimulationServer([SimulatedModel(name, 1.0, 2.0, skill, 20) for name in names]) as server:
        yield {"OPENAI_API_KEY": "unused", "OPENAI_API_BASE": server.base_url}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_readme_runs(number: int, tmp_path: Path, openai_at_home) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", BLOCKS[number]],
        cwd=tmp_path,
        env={**os.environ, **openai_at_home},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{BLOCKS[number]}\n{done.stderr}"


def test_the_readme_has_code() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        *(f"docs/{name}.md" for name in ("budgets", "evaluation", "prediction", "server")),
        "CHANGELOG.md",
    ],
)
def test_documents_are_finished_and_their_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    text = path.read_text()
    assert re.findall(r"@[A-Z_]+@|TODO|FIXME", text) == []
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
    programs = re.findall(r"\b((?:tests|examples|scripts)/[\w/]+(?:\.py)?)", text)
    assert [name for name in programs if not (ROOT / name).exists()] == []


def test_the_readme_names_every_command() -> None:
    missing = [name for name in commands.commands if f"optllm {name}" not in README]
    assert missing == []


# Run by tests/evaluation, on recorded outcomes that it takes as an argument.
EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {ROOT / "examples/reproduce_paper.py"})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
