"""Empty databases on the PostgreSQL server of this machine, where there is one."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import uuid
from collections.abc import Iterator

POSTGRESQL = "postgresql://postgres@127.0.0.1:5432/postgres"


def postgresql_is_missing() -> str:
    """Why there is no PostgreSQL to test with; empty when there is."""
    try:
        socket.create_connection(("127.0.0.1", 5432), timeout=1).close()
    except OSError as error:
        return f"no PostgreSQL server at 127.0.0.1:5432 ({error})"
    return "" if importlib.util.find_spec("psycopg") else "psycopg is not installed"


@contextlib.contextmanager
def new_postgresql_store() -> Iterator[str]:
    """The URL of an empty schema, which is dropped afterwards."""
    import psycopg

    schema = f"optllm_test_{uuid.uuid4().hex}"
    with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    try:
        yield f"{POSTGRESQL}?options=-csearch_path%3D{schema}"
    finally:
        with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")
