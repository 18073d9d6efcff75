"""How to talk to a PostgreSQL server that may fall silent.

What a URL says itself is left as it is, like ``?connect_timeout=2`` or
``?options=-cstatement_timeout=600000``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext

_LIBPQ = ("psycopg", "psycopg2")
_PATIENCE = {
    "connect_timeout": 10,  # seconds
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds
}
"""libpq's settings: a server that does not answer, or is gone, is given up."""
_LIMIT_STATEMENTS = (
    "SELECT set_config('statement_timeout', '60000', false)"
    " WHERE current_setting('statement_timeout') = '0'"
)
"""A minute, where neither the URL nor the server has a limit: longer than any statement of ours
takes on a server that is well."""


def postgresql_engine(url: URL) -> Engine:
    """An engine whose connections do not wait for ever."""
    if url.get_driver_name() not in _LIBPQ:
        return create_engine(url, pool_pre_ping=True)
    patience = {name: value for name, value in _PATIENCE.items() if name not in url.query}
    engine = create_engine(url, pool_pre_ping=True, connect_args=patience)

    @event.listens_for(engine, "connect")
    def limit(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_LIMIT_STATEMENTS)
        connection.commit()

    event.listen(engine, "handle_error", _tell_that_it_is_lost)
    return engine


def _tell_that_it_is_lost(context: ExceptionContext) -> None:
    """Count a connection as broken that was cut between many rows.

    psycopg then fails at leaving libpq's pipeline mode, in which nothing else can be done, and does
    not call the connection closed. An error in a row leaves it.
    """
    if context.connection is None or context.is_disconnect:
        return
    driven: Any = context.connection.connection.dbapi_connection
    pgconn = getattr(driven, "pgconn", None)  # psycopg2 has none, and no pipelines
    if pgconn is not None and pgconn.pipeline_status:
        context.is_disconnect = True
