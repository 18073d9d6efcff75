"""The rooms of the house: who may import whom, what an import costs, what is public.

Every rule is a function from a folder or a source to a list of violations, and is shown to
find one in a small house that breaks it.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import optllm_router

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "optllm_router"
FLOORS = (
    ("_types", "_errors", "_money", "_scopes", "_windows", "_telemetry", "_nearest"),
    ("_environment", "_openai_http", "_memory", "_dispensable", "_bounds"),
    (
        *("features", "allocation", "metrics", "pricing", "store"),
        *("transports", "simulation", "_batching", "_arguments", "capabilities", "arrivals"),
        *("_responses", "_health", "_retries"),
    ),
    ("predictor", "_messages", "candidates", "_response_events", "_conversations"),
    ("ledger", "learning", "policy", "scores", "_openai_settings"),
    ("config", "_steps", "traffic", "receipts", "_budgets"),
    ("_sending", "_query"),
    ("_turns",),
    ("_flow",),
    ("router", "_options", "_streams", "_routing", "_racing"),
    ("_performing", "_decision_log"),
    ("_chat", "_openai_errors", "_runtime"),
    ("plan", "_embeddings", "_chunks", "_telling"),
    ("_session", "_openai_streams"),
    ("_wire", "_feedback"),
    ("_completions", "_models"),
    ("_base_client",),
    ("client",),
    ("evaluation", "server"),
    ("_display", "_command_options"),
    ("_budget_commands", "_server_commands", "_receipt_command"),
    ("cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NUMERICS = ("features", "predictor", "allocation", "metrics")
WORLD = (
    *("time", "datetime", "os", "pathlib", "io", "shutil", "tempfile", "glob", "sys"),
    *("logging", "warnings", "asyncio", "multiprocessing", "subprocess"),
    *("random", "secrets", "socket", "http", "urllib", "httpx", "requests", "sqlite3"),
    *("sqlalchemy", "pickle", "joblib"),
)
# Saving a predictor is writing to the place that the caller names; nothing else is.
SAVING = ("predictor/_saving.py imports os", "predictor/_saving.py calls open")
MONEY = ("pricing", "store", "ledger")
NOT_FOR_MONEY = ("numpy", "scipy", "sklearn", *NUMERICS, "learning", "policy")


def sources(folder: Path) -> Iterator[tuple[str, str, ast.Module]]:
    """Each module below a package's folder: its path, its room, its syntax tree."""
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder)
        room = place.parts[0].removesuffix(".py")
        yield str(place), room, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything that a module imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str | None:
    """The room of a dotted name; a public name of the package counts as the room it is from."""
    package, _, rest = name.partition(".")
    if package != PACKAGE:
        return None
    first = rest.partition(".")[0]
    return optllm_router._ROOM_OF.get(first, first)


def upward_imports(folder: Path) -> list[str]:
    """Rooms import lower floors only, and themselves; the ground floor is one room."""
    found = []
    for place, room, tree in sources(folder):
        if room == "__init__":
            continue
        if room not in FLOOR_OF:
            found.append(f"{place} belongs to no floor")
            continue
        for name in imported(tree):
            other = room_of(name)
            if other in (None, room, "__version__"):
                continue
            if other not in FLOOR_OF:
                found.append(f"{place} imports {name}, which belongs to no floor")
            elif FLOOR_OF[other] >= FLOOR_OF[room] and FLOOR_OF[room] > 0:
                found.append(f"{place} (floor {FLOOR_OF[room]}) imports {name}")
            elif FLOOR_OF[other] > FLOOR_OF[room]:
                found.append(f"{place} (floor 0) imports {name}")
    return found


def worldly_numerics(folder: Path) -> list[str]:
    """Numerics know nothing of the world: no clock, files, environment, logging, chance."""
    found = []
    for place, room, tree in sources(folder):
        if room not in NUMERICS:
            continue
        found += [f"{place} imports {n}" for n in imported(tree) if n.partition(".")[0] in WORLD]
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = [function.id for function in calls if isinstance(function, ast.Name)]
        found += [f"{place} calls {name}" for name in names if name in ("open", "print", "input")]
    return [violation for violation in found if violation not in SAVING]


def numerate_money(folder: Path) -> list[str]:
    """Money is integers and decimals: no arrays, no numerics, nothing that decides."""
    found = []
    for place, room, tree in sources(folder):
        if room in MONEY:
            for name in imported(tree):
                if (room_of(name) or name.partition(".")[0]) in NOT_FOR_MONEY:
                    found.append(f"{place} imports {name}")
    return found


def nosy_adapters(folder: Path) -> list[str]:
    """Adapters use public names of the package, imported from the package itself."""
    public = {f"{PACKAGE}.{name}" for name in optllm_router.__all__} | {PACKAGE}
    return [
        f"{place} imports {name}"
        for place, _, tree in sources(folder)
        for name in imported(tree)
        if name.partition(".")[0] == PACKAGE and name not in public
    ]


def adapters_in_the_house(folder: Path) -> list[str]:
    """The package never imports an adapter."""
    names = {path.name for path in (ROOT / "adapters").iterdir() if path.is_dir()}
    return [
        f"{place} imports {name}"
        for place, _, tree in sources(folder)
        for name in imported(tree)
        if name.partition(".")[0] in names
    ]


RULES = (
    (upward_imports, PACKAGE),
    (worldly_numerics, PACKAGE),
    (numerate_money, PACKAGE),
    (adapters_in_the_house, PACKAGE),
    (nosy_adapters, "adapters"),
)


@pytest.mark.parametrize(
    ("rule", "folder"), RULES, ids=lambda value: getattr(value, "__name__", value)
)
def test_the_house_keeps_its_rules(rule, folder):
    assert len(list(sources(ROOT / folder))) > 1
    assert rule(ROOT / folder) == []


def test_every_floor_has_a_room():
    rooms = {room for _, room, _ in sources(ROOT / PACKAGE)} - {"__init__"}
    assert rooms <= set(FLOOR_OF)
    assert len(rooms) > 15


@pytest.mark.parametrize(
    ("rule", "place", "source", "violation"),
    [
        (upward_imports, "ledger.py", "from optllm_router.client import OptLLM", "client.OptLLM"),
        (upward_imports, "ledger.py", "from optllm_router import OptLLM", "optllm_router.OptLLM"),
        (upward_imports, "store/a.py", "import optllm_router.pricing.charge", "pricing.charge"),
        (upward_imports, "_money.py", "from optllm_router import store", "(floor 0) imports"),
        (
            upward_imports,
            "policy.py",
            "def f():\n    import optllm_router.cli",
            "optllm_router.cli",
        ),
        (upward_imports, "helpers.py", "", "helpers.py belongs to no floor"),
        (upward_imports, "cli.py", "from optllm_router.helpers import x", "helpers.x, which"),
        (worldly_numerics, "metrics.py", "import time", "metrics.py imports time"),
        (worldly_numerics, "features/a.py", "from os import environ", "imports os.environ"),
        (worldly_numerics, "predictor/a.py", "def f():\n    import pickle", "imports pickle"),
        (worldly_numerics, "allocation/a.py", "print(1)", "calls print"),
        (worldly_numerics, "allocation/a.py", "open('a')", "calls open"),
        (numerate_money, "ledger.py", "import numpy as np", "imports numpy"),
        (numerate_money, "pricing/a.py", "from optllm_router import exact_front", "exact_front"),
        (numerate_money, "store/a.py", "from optllm_router.features import x", "features.x"),
        (adapters_in_the_house, "client.py", "import optllm_litellm", "imports optllm_litellm"),
        (nosy_adapters, "a/b.py", "from optllm_router._flow import run", "_flow.run"),
        (nosy_adapters, "a/b.py", "import optllm_router.ledger", "optllm_router.ledger"),
    ],
)
def test_each_rule_finds_who_breaks_it(tmp_path, rule, place, source, violation):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    (found,) = rule(tmp_path)
    assert violation in found


def test_the_rules_let_through_what_is_allowed(tmp_path):
    (tmp_path / "ledger.py").write_text(
        "import time\nfrom optllm_router._money import Budget\nfrom optllm_router.store import x\n"
    )
    (tmp_path / "metrics.py").write_text("import math\nimport numpy as np\n")
    inside = [rule for rule, folder in RULES if folder == PACKAGE]
    assert [rule(tmp_path) for rule in inside] == [[]] * len(inside)


def test_an_adapter_may_use_what_is_public(tmp_path):
    (tmp_path / "a.py").write_text("import optllm_router\nfrom optllm_router import Router\n")
    assert nosy_adapters(tmp_path) == []


# What an import costs


def loaded_after(program: str, *arguments: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a program."""
    report = (
        "\nimport json, sys; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program + report, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


HEAVY = {"litellm", "openai", "sklearn", "starlette", "uvicorn", "matplotlib", "httpx"}


def test_importing_the_package_loads_nothing_heavy():
    loaded = loaded_after("import optllm_router")
    assert PACKAGE in loaded
    assert not loaded & (HEAVY | {"numpy", "scipy", "sqlalchemy", "yaml", "rich", "click"})


def test_a_client_is_made_without_what_only_requests_need(sqlite_url):
    program = """
import os, sys
os.environ["OPENAI_API_KEY"] = "unused"
from optllm_router import OptLLM
OptLLM(["openai/gpt-4o-mini"], budget="1 USD", store=sys.argv[1]).close()
"""
    loaded = loaded_after(program, sqlite_url)
    assert "sqlalchemy" in loaded
    assert not loaded & HEAVY


def test_the_import_test_can_fail():
    assert "numpy" in loaded_after("from optllm_router import exact_front")


# What is public


def typed_names(source: str) -> dict[str, tuple[str, ...]]:
    """What the ``if TYPE_CHECKING`` block of a package imports, by room."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom)
                room = str(statement.module).removeprefix(f"{PACKAGE}.")
                found[room] = tuple(alias.name for alias in statement.names)
    return found


def test_type_checkers_and_programs_see_the_same_names():
    assert typed_names(Path(optllm_router.__file__).read_text()) == optllm_router._ROOMS


def test_all_names_what_the_rooms_give():
    names = [name for names in optllm_router._ROOMS.values() for name in names]
    assert len(names) == len(set(names))
    assert optllm_router.__all__ == sorted([*names, "__version__"])


@pytest.mark.parametrize("name", optllm_router.__all__)
def test_every_public_name_resolves(name):
    value = getattr(optllm_router, name)
    assert name in dir(optllm_router)
    module = getattr(value, "__module__", PACKAGE)
    if module.startswith(PACKAGE):
        room = optllm_router._ROOM_OF.get(name, "")
        assert module.removeprefix(f"{PACKAGE}.").partition(".")[0] in (room, PACKAGE)


def test_a_name_that_does_not_exist_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'OptLMM'"):
        _ = optllm_router.OptLMM


def test_the_names_test_can_fail():
    source = f"if TYPE_CHECKING:\n    from {PACKAGE}.client import OptLLM\n"
    assert typed_names(source) == {"client": ("OptLLM",)} != optllm_router._ROOMS


def test_every_error_of_the_tree_is_public_and_drawn():
    from optllm_router import _errors

    kinds = {
        name
        for name, value in vars(_errors).items()
        if isinstance(value, type) and issubclass(value, _errors.OptLLMError)
    }
    assert kinds == set(optllm_router._ROOMS["_errors"])
    drawn = _errors.__doc__
    assert [kind for kind in sorted(kinds) if kind not in drawn] == []
