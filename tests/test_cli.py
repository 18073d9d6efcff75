"""The command, as a person or a script runs it: in a process of its own."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from optllm_router import Budget, ConfigurationError, evaluation
from optllm_router.cli import commands, main
from optllm_router.ledger import Ledger, Reservation
from optllm_router.store import Database

CONFIG = """
model_list:
  - model_name: small
    litellm_params: {model: openai/gpt-4o-mini}
  - model_name: own
    litellm_params: {model: openai/own, input_cost_per_token: 1e-6, output_cost_per_token: 2.5e-6}
litellm_settings: {drop_params: true}
router:
  budget: 5 USD per day
  policy: match_best
"""


def optllm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-c", "from optllm_router.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=120,
    )


def write_recorded(folder: Path, n: int = 60) -> Path:
    """Two kinds of questions; each of two cheap models knows one kind, a dear one both."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "queries.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "task", "query", "reference"])
        for i in range(n):
            kind = ("sum", "add the numbers") if i % 2 else ("poem", "write a verse about")
            rows.writerow([i, kind[0], f"{kind[1]} {rng.integers(1000)} {i}", "right"])
    with (folder / "outcomes.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["id", "model", "score", "prompt_tokens", "completion_tokens", "cost_usd", "answer"]
        )
        for i in range(n):
            for name, knows, price in (("a", {0}, 1e-6), ("b", {1}, 1e-6), ("c", {0, 1}, 1e-5)):
                right = i % 2 in knows
                prompt, completion = int(rng.integers(20, 30)), int(rng.integers(5, 9))
                cost = f"{(prompt + completion) * price:.10f}"
                answer = "right" if right else "wrong"
                rows.writerow([i, name, float(right), prompt, completion, cost, answer])
    return folder


def leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command's subcommands, and itself if it does something on its own."""
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield name, command
    if isinstance(command, click.Group):
        for below, one in command.commands.items():
            yield from leaves(one, f"{name} {below}")


def test_a_group_alone_tells_what_it_can_do(tmp_path: Path) -> None:
    for group in ([], ["keys"]):
        done = optllm(*group, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("Usage: optllm")
        assert "Commands:" in done.stderr


def test_a_server_without_its_models_key_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    done = optllm("serve", "openai/gpt-4o-mini", "--port", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no key for model 'openai/gpt-4o-mini'")
    assert list(tmp_path.iterdir()) == []


REPORT_NOTHING = ("optllm serve", "optllm keys revoke", "optllm budget set", "optllm budget remove")


def test_every_command_has_help_and_takes_json_if_it_reports_anything() -> None:
    found = dict(leaves(commands, "optllm"))
    assert set(REPORT_NOTHING) < set(found)
    for name, command in found.items():
        assert command.help, name
        takes = {option for param in command.params for option in param.opts}
        assert ("--json" in takes) != (name in REPORT_NOTHING), name


def test_demo_learns_within_its_cap(tmp_path: Path) -> None:
    done = optllm(
        "demo", "--prompts", "60", "--budget-usd", "0.03", "--figure", "front.png", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    demo = json.loads(done.stdout)
    assert demo["spent_nano"] == demo["billed_nano"]
    assert 0 < demo["spent_nano"] <= demo["cap_nano"] == 30_000_000
    assert demo["books"] == []
    assert demo["refused"] < 60
    assert [row["name"] for row in demo["rows"]][1:] == [
        "always the best model",
        "always the cheapest",
    ]
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_demo_that_runs_out_of_money_says_so(tmp_path: Path) -> None:
    done = optllm("demo", "--prompts", "40", "--budget-usd", "0.001", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "prompts were refused" in done.stdout
    assert "books verified" in done.stdout


def test_demo_for_people(tmp_path: Path) -> None:
    done = optllm("demo", "--prompts", "20", "--budget-usd", "0.02", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "always the best model" in done.stdout
    assert "cap   0.02 USD" in done.stdout
    assert "books verified" in done.stdout
    assert "<svg" in (tmp_path / "front.svg").read_text()
    assert "wrote front.svg" in done.stdout
    again = optllm("demo", "--prompts", "4", "--budget-usd", "0.02", cwd=tmp_path)
    assert "replaced front.svg" in again.stdout


def test_demo_without_matplotlib_draws_nothing_and_says_how_to(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')\n")
    done = optllm("demo", "--prompts", "4", "--budget-usd", "0.02", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "books verified" in done.stdout
    assert "pip install 'optllm-router[figures]'" in done.stdout
    assert not (tmp_path / "front.svg").exists()
    asked = optllm("demo", "--prompts", "4", "--figure", "mine.png", cwd=tmp_path)
    assert asked.returncode != 0
    assert "pip install 'optllm-router[figures]'" in asked.stderr


def test_replay_does_what_its_plan_promised(tmp_path: Path) -> None:
    folder = write_recorded(tmp_path / "recorded", n=200)
    done = optllm(
        "replay", str(folder), "--labels", "0.3", "--budget-usd", "0.02", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    replay = json.loads(done.stdout)
    assert replay["n_queries"] == 140
    assert replay["diverted"] == replay["refused"] == replay["failed"] == 0
    assert replay["accuracy"] == pytest.approx(replay["offline"]["accuracy"])
    assert replay["spent_usd"] == pytest.approx(replay["offline"]["cost_usd"], abs=1e-6)
    assert replay["spent_nano"] <= replay["cap_nano"]
    assert replay["graded_by"] == "exact match"
    assert replay["books"] == []
    assert replay["accuracy"] > 0.9


def test_replay_within_a_cap_that_pays_for_a_part(tmp_path: Path) -> None:
    folder = write_recorded(tmp_path / "recorded")
    done = optllm(
        "replay", str(folder), "--labels", "0.3", "--budget-usd", "0.0005", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    replay = json.loads(done.stdout)
    assert 0 < replay["refused"] < replay["n_queries"]
    assert replay["spent_nano"] <= replay["cap_nano"]


def test_evaluate_writes_what_is_needed_to_rescore(tmp_path: Path) -> None:
    folder = write_recorded(tmp_path / "recorded", n=200)
    outputs = ("--dump", "d.npz", "--figure", "f.svg")
    done = optllm("evaluate", str(folder), "--labels", "0.3", *outputs, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    evaluation = json.loads(done.stdout)
    assert {"optllm", "static", "oracle"} <= evaluation["methods"].keys()
    with np.load(tmp_path / "d.npz", allow_pickle=False) as dump:
        assert dump["p"].shape == (evaluation["n_test"], 3)
    assert "<svg" in (tmp_path / "f.svg").read_text()


def test_evaluate_compares_and_keeps_what_is_finished(tmp_path: Path) -> None:
    folder = write_recorded(tmp_path / "recorded", n=200)
    arguments = (
        "evaluate", str(folder), "--labels", "0.3", "--baselines", "base_rates,random",
        "--seeds", "2", "--report", "r.html", "--keep", "parts.json", "--json",
    )  # fmt: skip
    done = optllm(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"base_rates", "random", "oracle"} <= json.loads(done.stdout)["methods"].keys()
    assert "<html" in (tmp_path / "r.html").read_text()
    again = optllm(*arguments, cwd=tmp_path)
    assert json.loads(again.stdout) == json.loads(done.stdout)
    shown = optllm(*arguments[:-1], cwd=tmp_path).stdout
    assert "base_rates" in shown
    assert "…" not in shown  # no figure is cut off


@pytest.mark.parametrize(
    "output", [["--report", "r.html"], ["--report", "r.txt"], ["--dump", "d.npy"]]
)
def test_outputs_are_checked_before_the_work(tmp_path: Path, monkeypatch, output) -> None:
    folder = write_recorded(tmp_path / "recorded")
    monkeypatch.setattr(evaluation, "load_recorded", lambda folder: pytest.fail("began to work"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(commands, ["evaluate", str(folder), *output])
    assert isinstance(done.exception, ConfigurationError)


def test_what_was_found_out_is_shown_before_it_is_written(tmp_path: Path, monkeypatch) -> None:
    folder = write_recorded(tmp_path / "recorded")

    def full(comparison, path) -> None:
        raise ConfigurationError("the disk is full")

    monkeypatch.setattr(evaluation, "write_report", full)
    report = ["--report", str(tmp_path / "r.html"), "--seeds", "1", "--json"]
    done = CliRunner().invoke(commands, ["evaluate", str(folder), "--labels", "0.3", *report])
    assert str(done.exception) == "the disk is full"
    assert json.loads(done.stdout)["complete"] is True


def test_an_interrupted_comparison_shows_what_is_finished_and_exits_130(
    tmp_path: Path, monkeypatch
) -> None:
    folder = write_recorded(tmp_path / "recorded")
    compare = evaluation.compare

    def interrupted(*given, **named):
        parts = compare(*given, **named)
        yield next(parts)
        yield next(parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "compare", interrupted)
    arguments = ["evaluate", str(folder), "--labels", "0.3", "--baselines", "random", "--json"]
    done = CliRunner().invoke(commands, arguments)
    assert done.exit_code == 130
    assert "interrupted: 2 parts are finished" in done.stderr
    printed = json.loads(done.stdout)
    assert printed["complete"] is False
    assert list(printed["methods"]) == ["optllm", "random"]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 130


def test_models_are_shown_with_their_prices(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    done = optllm("models", "--config", "config.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["models"]}
    assert rows["own"]["usd_per_million_completion_tokens"] == 2.5
    assert rows["small"]["price_source"].startswith("litellm ")
    kinds = optllm("models", "gemini/gemini-2.5-pro", "--json", cwd=tmp_path)
    (gemini,) = json.loads(kinds.stdout)["models"]
    assert gemini["usd_per_million_cached_tokens"] < gemini["usd_per_million_prompt_tokens"]
    (tier,) = gemini["long_prompts"]
    assert tier["above_tokens"] == 200_000
    assert tier["usd_per_million_prompt_tokens"] > gemini["usd_per_million_prompt_tokens"]
    table = optllm("models", "openai/gpt-4o-mini", cwd=tmp_path)
    assert "gpt-4o-mini" in table.stdout


def test_budget_shows_and_verifies(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optllm.db"
    database = Database(url)
    ledger = Ledger(database)
    ledger.set_budget(Budget("0.5"))
    one = Reservation("r", "d", "c", 1_000, (), "test", 60.0)
    assert ledger.reserve(one).result() is None
    database.close()
    shown = optllm("budget", "--verify", "--json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["budgets"][0]["reserved_nano"] == 1_000
    proof = "every balance is the sum of its reservations"
    assert proof in optllm("budget", "verify", cwd=tmp_path).stderr
    assert "0.50 USD" in optllm("budget", cwd=tmp_path).stdout

    database = Database(url)
    with database._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE balances SET spent_nano = 7")
    database.close()
    wrong = optllm("budget", "verify", cwd=tmp_path)
    assert wrong.returncode == 1
    assert proof not in wrong.stderr
    assert "are (7, 1000, 1, 1, 0) in the balances" in wrong.stderr


def test_budget_needs_the_store_of_a_configuration_and_no_key(tmp_path: Path) -> None:
    Database(f"sqlite:///{tmp_path}/own.db").close()
    key = "litellm_params: {model: openai/gpt-4o, api_key: os.environ/ABSENT_KEY}"
    text = f"model_list: [{{{key}}}]\nrouter: {{store: 'sqlite:///own.db'}}\n"
    (tmp_path / "config.yaml").write_text(text)
    shown = optllm("budget", "--config", "config.yaml", "--json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["budgets"] == []


def test_budgets_are_set_changed_and_removed(tmp_path: Path) -> None:
    made = optllm("budget", "set", "20 USD per month in Europe/Berlin", cwd=tmp_path)
    assert (made.returncode, made.stdout) == (0, ""), made.stderr
    each = ["set", "1 USD per rolling 24h for tenant:*", "--name", "tenants", "--soft", "--pace"]
    for arguments in (each, ["set", "5 USD for job:x"], ["set", "7 USD for job:x"]):
        assert optllm("budget", *arguments, cwd=tmp_path).returncode == 0
    with contextlib.closing(Database(f"sqlite:///{tmp_path}/optllm.db")) as database:
        call = Reservation("r", "d", "c", 1_000, ("tenant:acme",), "test", 60.0, soft_nano=10)
        assert Ledger(database).reserve(call).result() is None
    shown = json.loads(optllm("budget", "--json", cwd=tmp_path).stdout)["budgets"]
    limits = {row["budget"]: row["limit_nano"] for row in shown}
    own = "tenants/tenant:acme"
    assert limits == {"default": 20 * 10**9, "job:x": 7 * 10**9, own: 10**9}
    (each_tenant,) = json.loads(optllm("budget", "--json", cwd=tmp_path).stdout)["templates"]
    assert (each_tenant["scope"], each_tenant["limit_nano"]) == ("tenant:*", 10**9)
    (acme,) = (row for row in shown if row["budget"] == own)
    assert (acme["window"], acme["hard"], acme["pace"]) == ("rolling 24h", False, True)
    assert acme["reserved_nano"] == 10
    assert optllm("budget", "remove", "job:x", cwd=tmp_path).returncode == 0
    assert "job:x" not in optllm("budget", cwd=tmp_path).stdout
    elsewhere = ["--store", "sqlite:///other.db"]
    assert optllm("budget", "set", "3 USD", *elsewhere, cwd=tmp_path).returncode == 0
    proven = json.loads(optllm("budget", "verify", *elsewhere, "--json", cwd=tmp_path).stdout)
    assert [row["limit_nano"] for row in proven["budgets"]] == [3 * 10**9]
    for wrong, complaint in (
        (["remove", "job:x"], "no budget 'job:x'"),
        (["set", "5 EUR"], "only USD is known"),
        (["set", "5 USD per week", "--name", "default"], "cannot become 'week'"),
    ):
        done = optllm("budget", *wrong, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert complaint in done.stderr


def test_a_budget_that_is_none_leaves_no_store_behind(tmp_path: Path) -> None:
    refused = optllm("budget", "set", "1 USD per fortnight", cwd=tmp_path)
    assert refused.returncode == 2
    assert "budget window 'fortnight' is unknown" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_budget_for_each_is_listed_before_anyone_spent(tmp_path: Path) -> None:
    made = optllm("budget", "set", "1 USD per day for tenant:*", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "tenant:*" in optllm("budget", cwd=tmp_path).stdout


def test_a_report_of_the_provider_corrects_calls_that_expired(tmp_path: Path) -> None:
    with contextlib.closing(Database(f"sqlite:///{tmp_path}/optllm.db")) as database:
        ledger = Ledger(database)
        ledger.set_budget(Budget(1))
        for id in ("a-0", "b-0", "b-1", "c-0", "d-0", "d-1"):
            call = Reservation(id, id[0], f"model {id[-1]}", 1_000, (), "test", 0.0)
            assert ledger.reserve(call).result() is None
        assert ledger.settle("c-0", 9).result() is True
    lines = ["id,model,cost_usd", "a,,0.0000001", "b,model 1,2e-7", "d,,1", "c,,1", "x,,1"]
    (tmp_path / "usage.csv").write_text("\n".join(lines))
    done = optllm("budget", "reconcile", "usage.csv", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    corrected = [(one["reservation_id"], one["after_nano"]) for one in report["corrections"]]
    assert corrected == [("a-0", 100), ("b-1", 200)]
    assert (report["unmatched"], report["still_expired"]) == (["d", "c", "x"], 3)
    shown = optllm("budget", "--verify", "--json", cwd=tmp_path)
    assert json.loads(shown.stdout)["budgets"][0]["spent_nano"] == 100 + 200 + 9 + 3_000
    again = optllm("budget", "reconcile", "usage.csv", cwd=tmp_path)
    assert "3 expired calls still count in full" in again.stdout
    (tmp_path / "usage.json").write_text('[{"id": "b", "cost_usd": -1}]')
    wrong = optllm("budget", "reconcile", "usage.json", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "cost_usd of charge 1 -1" in wrong.stderr


def test_setting_a_budget_changes_what_is_given(tmp_path: Path) -> None:
    first = ["--name", "mine", "--soft", "--no-pace", "--threshold", "7", "--threshold", "70"]
    for more in (first, ["--name", "mine"]):
        done = optllm("budget", "set", "5 USD per day", *more, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "budget 'mine' is set\n")
    (row,) = json.loads(optllm("budget", "--json", cwd=tmp_path).stdout)["budgets"]
    assert (row["hard"], row["pace"]) == (False, False)
    with contextlib.closing(sqlite3.connect(tmp_path / "optllm.db")) as connection:
        assert connection.execute("SELECT thresholds FROM budgets").fetchall() == [("7,70",)]
    done = optllm("budget", "set", "0 USD per day", "--name", "mine", "--hard", cwd=tmp_path)
    assert done.returncode == 0
    assert "it refuses every call" in done.stderr
    (row,) = json.loads(optllm("budget", "--json", cwd=tmp_path).stdout)["budgets"]
    assert (row["limit_nano"], row["hard"], row["pace"]) == (0, True, False)


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Neither read as markup nor obeyed by a terminal, also where a store has older ones."""
    markup, emoji, escape = "tenant:[/x]", "tenant:[bold]:bomb:", "tenant:\x1b]0;mine\x07"
    with contextlib.closing(Database(f"sqlite:///{tmp_path}/optllm.db")) as database:
        ledger = Ledger(database)
        ledger.set_budget(Budget(1, scope="tenant:*"))
        for i, scope in enumerate((markup, emoji)):
            call = Reservation(f"{scope}-0", scope, f"[/m{i}]", 1_000, (scope,), "[/p]", -1.0)
            assert ledger.reserve(call).result() is None
        ledger.recover()
        with database._engine.begin() as connection:
            for table, column in (
                ("budgets", "name"),
                ("budgets", "scope"),
                ("balances", "budget"),
            ):
                connection.exec_driver_sql(
                    f"UPDATE {table} SET {column} = REPLACE({column}, ?, ?)", (emoji, escape)
                )
    commands = (["budget"], ["receipt", "--by", "scope"], ["receipt"])
    commands += (["receipt", "--by", "price-table"],)
    shown = [optllm(*command, cwd=tmp_path) for command in commands]
    assert [(done.returncode, done.stderr) for done in shown] == [(0, "")] * 4
    assert "[/x]" in shown[0].stdout
    assert "\\x1b]0;mine\\x07" in shown[0].stdout
    assert "[/m0]" in shown[2].stdout
    assert "[/p]" in shown[3].stdout
    (tmp_path / "usage.json").write_text(
        json.dumps([{"id": markup, "cost_usd": 1e-7}, {"id": "[/nobody]\x1b[2J", "cost_usd": 1}])
    )
    done = optllm("budget", "reconcile", "usage.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "[/m0]" in done.stdout
    assert "no single expired call of id [/nobody]\\x1b[2J" in done.stdout
    missing = optllm("receipt", "--baseline", "no\x1b[2Jmodel", cwd=tmp_path)
    assert missing.returncode == 2
    assert not any("\x1b" in one.stdout + one.stderr for one in (*shown, done, missing))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["receipt", "--since", "999999w"], "since '999999w' lies outside the years 1 to 9999"),
        (["receipt", "--since", "2030-01-01"], "since '2030-01-01' is not before now"),
        (["receipt", "--until", "2000-01-01"], "since '30d' is not before until '2000-01-01'"),
        (["receipt", "--csv", "absent/x.csv"], "no folder 'absent'"),
        (["receipt", "--csv", "x" * 300], "cannot be written: File name too long"),
        (["receipt", "--baseline", "nonesuch"], "no price is known for model 'nonesuch'"),
        (["budget", "set", "-5 USD"], "budget limit '-5' must be"),
        (["budget", "set", "--sofd", "5 USD"], "No such option '--sofd'"),
        (["budget", "set", "5 USD per week"], "(--name other, or name='other')"),
        (["budget", "set", "5 USD", "--threshold", "0"], "budget threshold 0"),
        (["budget", "reconcile", "deep.json"], "'deep.json' is no CSV or JSON list"),
        (["budget", "reconcile", "object.json"], "names no id and no cost_usd"),
        (["budget", "reconcile", "empty"], "names no id and no cost_usd"),
    ],
)
def test_a_mistake_about_money_is_one_sentence(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "object.json").write_text('{"id": "a", "cost_usd": 1}')
    (tmp_path / "empty").write_text("")
    with contextlib.closing(Database(f"sqlite:///{tmp_path}/optllm.db")) as database:
        Ledger(database).set_budget(Budget(1))
    done = optllm(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", ["tables", "text", "nothing"])
def test_budget_leaves_the_file_of_another_program_alone(tmp_path: Path, content: str) -> None:
    file = tmp_path / "theirs.db"
    if content == "tables":
        connection = sqlite3.connect(file)
        connection.execute("CREATE TABLE migrations (id INTEGER, batch INTEGER)")
        connection.commit()
        connection.close()
    else:
        file.write_text("no database, but long enough to be one" * 10 if content == "text" else "")
    before = file.read_bytes()
    done = optllm("budget", "--store", "sqlite:///theirs.db", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "'theirs.db'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.db"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["models", "no/such-model"], "no price is known for model 'no/such-model'"),
        (["models"], "name a model"),
        (["models", "--config", "absent.yaml"], "absent.yaml"),
        (["budget"], "no store at 'optllm.db'"),
        (["budget", "--store", "sqlite+pysqlite:///made.db"], "no store at 'made.db'"),
        (["budget", "--store", "sqlite:///file:made.db?uri=true"], "no store at 'made.db'"),
        (["budget", "--store", "sqlite:///recorded"], "no store at 'recorded'"),
        (["budget", "--store", "mysql://x/y"], "only sqlite and postgresql"),
        (["budget", "--store", "postgresql://u:secret@h:port/x"], "'h:port/x' is not a database"),
        (["demo", "--budget-usd", "-1"], "-1"),
        (["demo", "--budget-usd", "much"], "'much' is not a valid float"),
        (["demo", "--figure", "front.gif"], "front.gif"),
        (["demo", "--figure", "absent/front.svg"], "no folder 'absent'"),
        (["demo", "--prompts", "3"], "3 is not in the range"),
        (["evaluate", "recorded", "--dump", "absent/d.npz"], "no folder 'absent'"),
        (["evaluate", "recorded", "--seeds", "2", "--dump", "d.npz"], "--dump is for one split"),
        (["evaluate", "recorded", "--baselines", "magic"], "magic"),
        (["evaluate", "recorded", "--baselines", ""], "'' names no method"),
        (["evaluate", "recorded", "--dump", "d.json"], "'d.json' must end in .npz"),
        (["evaluate", "recorded", "--report", "r.pdf"], "'r.pdf' must end in .html"),
        (["evaluate", "recorded", "--report", "absent/r.html"], "no folder 'absent'"),
        (["evaluate", "recorded", "--keep", "absent/k"], "no folder 'absent'"),
        (["replay", "absent", "--budget-usd", "1"], "absent"),
        (["replay", "absent"], "--budget-usd"),
        (["evaluate", "absent"], "absent"),
        (["evaluate", "recorded", "--labels", "1.5"], "1.5"),
        (["evaluate", "recorded", "--labels", "nan"], "nan"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    write_recorded(tmp_path / "recorded", n=10)
    done = optllm(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recorded"]
