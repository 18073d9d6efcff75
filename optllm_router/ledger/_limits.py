"""The table of budgets: kept, changed, and found by the scopes of a call.

A template (``tenant:*``) has no balance. It is copied for each tenant when that tenant first
calls; the copy is a budget like any other and remembers which template it came from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, or_, select, text, update

from optllm_router._errors import ConfigurationError
from optllm_router._money import Budget
from optllm_router._scopes import EVERYTHING, KINDS, is_template, template_of
from optllm_router._windows import Span, span_at
from optllm_router.store.schema import budgets

Account: TypeAlias = tuple[str, int]
"""A budget's name and the first second of one of its windows, or of a slot of a rolling one."""


@dataclass(frozen=True)
class Limit:
    """A budget as the ledger applies it at one moment.

    Attributes:
        name: of the budget.
        scope: what it pays for.
        window: canonical name of its window.
        timezone: zone of the window.
        nano: the cap in nano-dollars.
        hard: whether the most that a call can cost is set aside.
        thresholds: percentages whose crossing is reported.
        pace: whether the money is to last for the window.
        template: name of the budget it was copied from, else empty.
        span: where the window lies now.
    """

    name: str
    scope: str
    window: str
    timezone: str
    nano: int
    hard: bool
    thresholds: tuple[int, ...]
    pace: bool
    template: str
    span: Span

    @property
    def account(self) -> Account:
        """Where a call of this moment is entered."""
        return self.name, self.span.slot

    def counts(self, account: Account) -> bool:
        """Whether what an account holds uses up this limit now."""
        return account[0] == self.name and self.span.first <= account[1] <= self.span.last


MANNERS = ("limit_nano", "hard", "thresholds", "pace")
"""What of a budget can change; its books are kept by all else."""


def keep_budget(connection: Connection, budget: Budget, only: Collection[str] = MANNERS) -> None:
    """Create a budget, or change its limit and manners.

    Args:
        connection: in a transaction.
        budget: as it is to be.
        only: what to change of one that is there, and was not removed.

    Raises:
        ConfigurationError: a budget of that name has another scope, window or time zone, or the
            name is one that a copy of a template has or will have.
    """
    values = {
        "limit_nano": budget.limit_nano,
        "hard": int(budget.hard),
        "thresholds": ",".join(map(str, budget.thresholds)),
        "pace": int(budget.pace),
    }
    meaning = {"scope": budget.scope, "window": budget.window, "timezone": budget.timezone}
    before = _row(connection, budget.name)
    if before is None:
        _refuse_names_of_copies(connection, budget)
        new = {"name": budget.name, "template": "", "removed": 0, **meaning}
        if connection.execute(_INSERT, new | values).rowcount == 1:
            return
        before = connection.execute(_locked(budget.name)).one()  # another process was faster
    for what, value in meaning.items():
        if before._mapping[what] != value:
            removed = ", which was removed and keeps its books," if before.removed else ""
            raise ConfigurationError(
                f"budget {budget.name!r} of this store{removed} has the {what} "
                f"{before._mapping[what]!r}, which cannot become {value!r}; give the new budget "
                "another name (--name other, or name='other'), or use another store"
            )
    if before.removed:
        _change(connection, before, values)
        connection.execute(update(budgets).where(_with_copies(budget.name)).values(removed=0))
    else:
        _change(connection, before, {what: values[what] for what in only})


def configure_budget(connection: Connection, budget: Budget) -> None:
    """Create or change a budget as a configuration says, if it says so for the first time.

    What was changed since stays: whoever starts again with an unchanged configuration does not
    undo it. But a budget that was removed is in use again: who configures a cap relies on it.

    Raises:
        ConfigurationError: as :func:`keep_budget`.
    """
    said = repr(
        (budget.scope, budget.window, budget.timezone, *(getattr(budget, one) for one in MANNERS))
    )
    before = _row(connection, budget.name)
    if before is None or before.removed or before.configured != said:
        keep_budget(connection, budget)
        named = budgets.c.name == budget.name
        connection.execute(update(budgets).where(named).values(configured=said))


def change_limit(connection: Connection, name: str, nano: int) -> None:
    """Change a budget's limit, and that of copies which still had the same one.

    Raises:
        ConfigurationError: no budget of that name.
    """
    _change(connection, _known(connection, name), {"limit_nano": nano})


def remove_budget(connection: Connection, name: str) -> None:
    """Take a budget and its copies out of use; what they spent stays in the books.

    Raises:
        ConfigurationError: no budget of that name, or a copy, which the next call would make anew.
    """
    template = _known(connection, name).template
    if template:
        raise ConfigurationError(
            f"budget {name!r} is made from {template!r}; remove that one, or set this one's limit"
        )
    connection.execute(update(budgets).where(_with_copies(name)).values(removed=1))


def _refuse_names_of_copies(connection: Connection, new: Budget) -> None:
    templates = select(budgets.c.name, budgets.c.scope).where(budgets.c.scope.in_(_TEMPLATES))
    for name, scope in connection.execute(templates):
        if _names_copy(new.name, name, scope):
            raise ConfigurationError(
                f"budget name {new.name!r} is kept for what budget {name!r} makes for {scope}; "
                "give the new budget another name"
            )
    if is_template(new.scope):
        starts = budgets.c.name.startswith(_copy_name(new.name, ""), autoescape=True)
        for name in connection.scalars(select(budgets.c.name).where(starts)):
            if _names_copy(name, new.name, new.scope):
                raise ConfigurationError(
                    f"budget {new.name!r} could not call one of those that it makes for "
                    f"{new.scope} {name!r}, which is taken; give the new budget another name"
                )


_TEMPLATES = [f"{kind}:*" for kind in KINDS]
"""Scopes that stand for every one of their kind."""


def _copy_name(template: str, scope: str) -> str:
    return f"{template}/{scope}"


def _names_copy(name: str, template: str, scope: str) -> bool:
    """Whether the template of a name and scope calls one of its copies like this."""
    of = name.removeprefix(_copy_name(template, ""))
    return of != name and not is_template(of) and template_of(of) == scope


def _with_copies(name: str) -> ColumnElement[bool]:
    return or_(budgets.c.name == name, budgets.c.template == name)


def _row(connection: Connection, name: str) -> Row[Any] | None:
    return connection.execute(_locked(name)).first()


def _locked(name: str) -> Select[Any]:
    return select(budgets).where(budgets.c.name == name).with_for_update()


def _known(connection: Connection, name: str) -> Row[Any]:
    row = _row(connection, name)
    if row is None or row.removed:
        raise ConfigurationError(f"no budget {name!r} in this store; create it first")
    return row


def _change(connection: Connection, before: Row[Any], values: dict[str, Any]) -> None:
    connection.execute(update(budgets).where(budgets.c.name == before.name).values(values))
    if is_template(before.scope):
        # Copies whose limit somebody set apart keep it.
        followers = (budgets.c.template == before.name) & (
            budgets.c.limit_nano == before.limit_nano
        )
        connection.execute(update(budgets).where(followers).values(values))


_INSERT = text(
    'INSERT INTO budgets (name, "window", limit_nano, scope, timezone, hard, thresholds, pace,'
    " template, removed) VALUES (:name, :window, :limit_nano, :scope, :timezone, :hard,"
    " :thresholds, :pace, :template, :removed) ON CONFLICT DO NOTHING"
)
_FOUND = select(budgets).where(budgets.c.removed == 0).order_by(budgets.c.name)
_APPLICABLE = _FOUND.where(
    or_(
        budgets.c.scope.in_(bindparam("scopes", expanding=True)),
        budgets.c.name.in_(bindparam("names", expanding=True)),
    )
)
_LOCKED = _APPLICABLE.with_for_update()


def read_limit(connection: Connection, name: str, now: float) -> Limit | None:
    """A budget, or a template, that is in use."""
    row = connection.execute(_FOUND.where(budgets.c.name == name)).first()
    return None if row is None else _limit(row, now)


def read_with_copies(connection: Connection, name: str, now: float) -> list[Limit]:
    """A budget that has a balance, or the copies of a template, by name."""
    found = (_limit(row, now) for row in connection.execute(_FOUND.where(_with_copies(name))))
    return [limit for limit in found if not is_template(limit.scope)]


def read_limits(connection: Connection, now: float, *, templates: bool = False) -> list[Limit]:
    """Every budget that has a balance, by name; or every template, which has none."""
    found = (_limit(row, now) for row in connection.execute(_FOUND))
    return [limit for limit in found if is_template(limit.scope) == templates]


def find_limits(
    connection: Connection,
    scopes: Iterable[str],
    now: float,
    *,
    names: Collection[str] = (),
    lock: bool = False,
) -> list[Limit]:
    """The budgets on these scopes and on everything, and those of the given names; by name.

    A scope that only a template covers gets its copy: a row when the budgets are to be locked,
    else one in memory. Locked budgets are locked in the order of their names.
    """
    wanted = set(scopes)
    searched = {EVERYTHING, *wanted, *map(template_of, wanted)}
    statement = _LOCKED if lock else _APPLICABLE
    parameters = {"scopes": sorted(searched), "names": sorted(names)}

    def find() -> list[Limit]:
        return [_limit(row, now) for row in connection.execute(statement, parameters)]

    found = find()
    copies = _missing_copies(found, wanted)
    if lock and copies:  # whoever waited for the template's lock may find them made meanwhile
        found = find()
        copies = _missing_copies(found, wanted)
        if copies:
            _insert(connection, copies)
    limits = [limit for limit in (*found, *copies) if not is_template(limit.scope)]
    return sorted(limits, key=lambda limit: limit.name)


def applicable(limits: Iterable[Limit], scopes: Collection[str]) -> tuple[Limit, ...]:
    """Those that a call of these scopes must fit into.

    Raises:
        ConfigurationError: no budget covers one of the scopes: a name with a mistake in it must
            not spend outside the caps.
    """
    found = tuple(limit for limit in limits if limit.scope == EVERYTHING or limit.scope in scopes)
    for scope in sorted(set(scopes) - {limit.scope for limit in found}):
        raise ConfigurationError(
            f"no budget of this store covers {scope!r}; create one, like "
            f"'5 USD per day for {scope}', or one for each, '5 USD per day for "
            f"{template_of(scope)}'"
        )
    return found


def _missing_copies(found: Collection[Limit], scopes: Collection[str]) -> list[Limit]:
    made = {(limit.template, limit.scope) for limit in found}
    return [
        replace(
            template,
            name=_copy_name(template.name, scope),
            scope=scope,
            template=template.name,
        )
        for template in found
        if is_template(template.scope)
        for scope in sorted(scopes)
        if template_of(scope) == template.scope and (template.name, scope) not in made
    ]


def _insert(connection: Connection, limits: Collection[Limit]) -> None:
    rows = [
        {
            "name": limit.name,
            "window": limit.window,
            "limit_nano": limit.nano,
            "scope": limit.scope,
            "timezone": limit.timezone,
            "hard": int(limit.hard),
            "thresholds": ",".join(map(str, limit.thresholds)),
            "pace": int(limit.pace),
            "template": limit.template,
            "removed": 0,
        }
        for limit in limits
    ]
    for row in rows:
        if connection.execute(_INSERT, row).rowcount != 1:
            raise ConfigurationError(
                f"budget {row['template']!r} cannot make one for {row['scope']}: another budget "
                f"is called {row['name']!r}; remove {row['template']!r} and set it under another "
                "name"
            )


def _limit(row: Row[Any], now: float) -> Limit:
    return Limit(
        name=row.name,
        scope=row.scope,
        window=row.window,
        timezone=row.timezone,
        nano=int(row.limit_nano),
        hard=bool(row.hard),
        thresholds=tuple(map(int, row.thresholds.split(","))) if row.thresholds else (),
        pace=bool(row.pace),
        template=row.template,
        span=span_at(row.window, now, row.timezone),
    )
