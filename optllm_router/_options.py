"""What a call, or a client made with ``with_options``, sets of ours: scopes, policy and so on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from optllm_router._arguments import checked_seconds, given_or_none
from optllm_router._errors import ConfigurationError, InvalidRequestError
from optllm_router._nearest import nearest, quoted
from optllm_router._openai_settings import refuse_others
from optllm_router._scopes import scopes_of_call
from optllm_router.config import read_policy
from optllm_router.policy import Policy

_LONGEST_NAME = 200
_MOST_TAGS = 29
_NONE_NAMED: Mapping[str, Policy] = MappingProxyType({})


@dataclass(frozen=True)
class Options:
    """What is set beside OpenAI's own arguments; ``None`` and empty are "not set".

    Attributes:
        policy: instead of the client's own.
        tenant: who pays: the scope ``tenant:NAME``.
        user: on whose behalf: the scope ``user:NAME``.
        job: as a part of what: the scope ``job:NAME``.
        tags: what it is for: one scope ``tag:NAME`` each.
        conversation: names the conversation that the call is a turn of.
        require_tags: what a candidate's tags must include.
        forbid_tags: what they must not include.
        timeout_seconds: how long an answer may take, all candidates and retries together.
        max_retries: repetitions of a call that a provider could not serve.
    """

    policy: Policy | None = None
    tenant: str | None = None
    user: str | None = None
    job: str | None = None
    tags: tuple[str, ...] = ()
    conversation: str | None = None
    require_tags: tuple[str, ...] = ()
    forbid_tags: tuple[str, ...] = ()
    timeout_seconds: float | None = None
    max_retries: int | None = None

    def __post_init__(self) -> None:
        with _as_invalid_request():
            scopes_of_call(self.scopes)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of budgets that a call with these options belongs to, its tenant's first."""
        named = (("tenant", self.tenant), ("user", self.user), ("job", self.job))
        pairs = [*named, *(("tag", tag) for tag in self.tags)]
        return tuple(f"{kind}:{name}" for kind, name in pairs if name is not None)

    def narrowed(self, further: Options) -> Options:
        """These and ``further``, which wins; but scopes and what tags must be only add up.

        Who was given a client for one tenant cannot spend another's money with it.

        Raises:
            InvalidRequestError: ``further`` names another tenant, user or job.
        """
        for kind in ("tenant", "user", "job"):
            bound, named = getattr(self, kind), getattr(further, kind)
            if bound is not None and named not in (None, bound):
                raise InvalidRequestError(
                    f"{kind} {named!r} is asked for, but this client is for {kind} {bound!r} only",
                    param=kind,
                )
        given = {one.name: getattr(further, one.name) for one in fields(further)}
        given = {name: value for name, value in given.items() if value not in (None, ())}
        for name in ("tags", "require_tags", "forbid_tags"):
            given[name] = tuple(dict.fromkeys(getattr(self, name) + getattr(further, name)))
        return replace(self, **given)


_OF_A_CALL = (
    *("policy", "tenant", "user", "job", "tags", "conversation"),
    *("require_tags", "forbid_tags"),
)


def read_call_options(given: Any, policies: Mapping[str, Policy] = _NONE_NAMED) -> Options:
    """Options from ``extra_body={"optllm": {...}}``; ``policies`` are those of the user's own.

    Raises:
        InvalidRequestError: names the option that is wrong.
    """
    if given is None:
        return Options()
    if not isinstance(given, Mapping):
        raise InvalidRequestError(
            f"extra_body['optllm'] is {quoted(given)}; it takes a mapping of "
            f"{', '.join(_OF_A_CALL)}"
        )
    for name in given:
        if name not in _OF_A_CALL:
            near = nearest(name, _OF_A_CALL, most=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_OF_A_CALL)}"
            raise InvalidRequestError(
                f"extra_body['optllm'] sets {quoted(name)}, which is unknown; {hint}",
                param=str(name),
            )
    return read_options(**given, policies=policies)


def narrowed_by_call(
    options: Options, given: Any, timeout: Any, policies: Mapping[str, Policy]
) -> Options:
    """The options of a client, narrowed by what one call sets.

    Args:
        options: of the client.
        given: ``extra_body["optllm"]``.
        timeout: the call's own argument.
        policies: of the user's own, by name.

    Raises:
        InvalidRequestError: names the option that is wrong.
    """
    if given is None and timeout is None:
        return options
    seconds = checked_seconds(timeout)
    try:
        own = replace(read_call_options(given, policies), timeout_seconds=seconds)
        return options.narrowed(own)
    except InvalidRequestError as error:
        error.param = "optllm" if error.param is None else f"optllm.{error.param}"
        raise


def read_options(
    *,
    policy: Any = None,
    tenant: Any = None,
    user: Any = None,
    job: Any = None,
    tags: Any = (),
    conversation: Any = None,
    require_tags: Any = (),
    forbid_tags: Any = (),
    timeout: Any = None,
    max_retries: Any = None,
    policies: Mapping[str, Policy] = _NONE_NAMED,
) -> Options:
    """Options as a user writes them; ``policies`` are those of the user's own.

    Raises:
        InvalidRequestError: names the option that is wrong.
    """
    timeout, max_retries = given_or_none(timeout), given_or_none(max_retries)
    whole = isinstance(max_retries, int) and not isinstance(max_retries, bool)
    if max_retries is not None and not (whole and max_retries >= 0):
        raise InvalidRequestError(
            f"max_retries {quoted(max_retries)} must be a whole number, 0 or more",
            param="max_retries",
        )
    return Options(
        policy=None if policy is None else call_policy(policy, policies),
        tenant=_name("tenant", tenant),
        user=_name("user", user),
        job=_name("job", job),
        tags=_names("tags", tags),
        conversation=_name("conversation", conversation),
        require_tags=_names("require_tags", require_tags),
        forbid_tags=_names("forbid_tags", forbid_tags),
        timeout_seconds=checked_seconds(timeout),
        max_retries=max_retries,
    )


def check_options(others: Mapping[str, Any], taken: Callable[..., Any]) -> None:
    """Raise for what is no option of a client.

    Raises:
        InvalidRequestError: with the place where it is set, or the nearest option.
    """
    with _as_invalid_request():
        refuse_others(others, taken, "option")


def one_time_limit(seconds: Any, timeout: Any) -> Any:
    """A client's time limit, by our name for it or by openai's.

    Raises:
        ConfigurationError: both are given, or openai's is none.
    """
    timeout = given_or_none(timeout)
    if seconds is not None and timeout is not None:
        raise ConfigurationError(
            "both timeout and timeout_seconds are given, which are the same; leave one out"
        )
    try:
        limit = checked_seconds(timeout)
    except InvalidRequestError as error:
        raise ConfigurationError(str(error)) from None
    return seconds if limit is None else limit


def call_policy(value: Any, policies: Mapping[str, Policy], param: str = "policy") -> Policy:
    """The policy of one call.

    Args:
        value: as a user writes it.
        policies: of the user's own, by name.
        param: the argument that holds it.

    Raises:
        InvalidRequestError: there is none of that name.
    """
    with _as_invalid_request(param):
        return read_policy(value, policies)


@contextlib.contextmanager
def _as_invalid_request(param: str | None = None) -> Iterator[None]:
    """A mistake of configuration that is made in a call, in that argument."""
    try:
        yield
    except ConfigurationError as error:
        raise InvalidRequestError(str(error), param=param) from None


def _name(what: str, value: Any) -> str | None:
    if value is None:
        return None
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= _LONGEST_NAME
        or not value.isprintable()
    ):
        shown = repr(value)[:_LONGEST_NAME]
        raise InvalidRequestError(
            f"{what} {shown} must be printable text of 1 to {_LONGEST_NAME} characters", param=what
        )
    return value


def _names(what: str, values: Any) -> tuple[str, ...]:
    if values is None:
        return ()
    many = (values,) if isinstance(values, str) else values
    if not isinstance(many, (list, tuple)) or len(many) > _MOST_TAGS:
        kind = type(values).__name__
        raise InvalidRequestError(
            f"{what} must be a text or a list of at most {_MOST_TAGS} texts, not this {kind}",
            param=what,
        )
    named = [name for name in (_name(what, value) for value in many) if name is not None]
    return tuple(dict.fromkeys(named))
