"""What several commands share: where the store is, and how results leave for machines."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from optllm_router.store import Database

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_STORE = "sqlite:///optllm.db"
FILE = click.Path(dir_okay=False, path_type=Path)


def json_option(command: Command) -> Command:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def store_options(command: Command) -> Command:
    """``--config`` and ``--store``; see :func:`opened`."""
    config = click.option(
        "--config", type=FILE, help="A LiteLLM config.yaml with our settings under router:."
    )
    store = click.option(
        "--store", help=f"Database URL.  [default: that of --config, or {DEFAULT_STORE}]"
    )
    return config(store(command))


def check_folder(path: Path | None) -> None:
    """Nobody should learn after minutes of work that its result cannot be written.

    Raises:
        click.UsageError: the folder of a file that is to be written is not there.
    """
    if path is not None and not path.parent.is_dir():
        raise click.UsageError(f"{str(path)!r}: there is no folder {str(path.parent)!r}")


def print_json(value: Any) -> None:
    """One object, on standard output."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


@contextlib.contextmanager
def opened(
    config: Path | None, store: str | None, *, may_create: bool = False
) -> Iterator[Database]:
    """The store that the options name.

    Args:
        config: of ``--config``.
        store: of ``--store``.
        may_create: whether one that is not there is created.

    Raises:
        click.UsageError: it is not there, cannot be read, or belongs to another program.
    """
    from optllm_router.config import load_store
    from optllm_router.store import Database

    url = store or (load_store(config) if config else DEFAULT_STORE)
    _must_be_ours(url, may_create)
    with contextlib.closing(Database(url)) as database:
        yield database


def _must_be_ours(url: str, may_create: bool) -> None:
    """Looking at a store must neither create one nor turn another program's file into one."""
    import sqlite3

    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return  # opening it says what is wrong
    name = (parsed.database or "").removeprefix("file:")
    if parsed.get_backend_name() != "sqlite" or name in ("", ":memory:"):
        return
    path = Path(name)
    if not path.is_file() or path.stat().st_size == 0:  # SQLite takes an empty file for a new one
        if may_create:
            return
        raise click.UsageError(f"no store at {name!r}; give --store or --config")
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        ) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        raise click.UsageError(f"the store at {name!r} cannot be read: {error}") from error
    if not {"migrations", "budgets", "balances"} <= tables:
        raise click.UsageError(
            f"{name!r} is a database of another program; give --store or --config"
        )
