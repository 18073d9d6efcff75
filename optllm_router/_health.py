"""Whether a candidate may be asked now: cooldowns after faults, rate limits, calls at once.

State machines without I/O, for one process, on a clock that is passed in. A call *enters* a
candidate, gets a :class:`Ticket` or the seconds to wait, and gives the ticket back with what
came of it.

The breaker of each candidate::

    closed ── repeated faults, or one that will repeat (a bad key) ──► open
      ▲                                                                  │ cooldown over
      └── the probe works ── half open: one probe at a time ◄────────────┘
                                    └── it fails ──► open, for twice as long
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from optllm_router._errors import (
    ProviderAuthenticationError,
    ProviderError,
    ProviderRejectedError,
    ProviderTimeoutError,
)
from optllm_router._types import RateLimits

_FAULTS_TO_OPEN = 3
_FIRST_COOLDOWN_SECONDS = 5.0
_LONGEST_COOLDOWN_SECONDS = 60.0
_MINUTE = 60.0
_NO_LIMITS = RateLimits()
_SHORT_SECONDS = 5.0
"""A caller's time limit under this is impatience, not a provider's fault."""
_UNTIL_ONE_ENDS_SECONDS = 0.05
"""How soon to ask again where only the end of another call makes room."""


class Breaker:
    """Keeps calls from a candidate that keeps failing; not thread-safe.

    What the provider asked for and what we impose are kept apart: who has nobody else to ask minds
    the former only.
    """

    def __init__(self) -> None:
        self._resting_until = -math.inf
        self._left_alone_until = -math.inf
        self._faults = 0
        self._cooldown = _FIRST_COOLDOWN_SECONDS
        self._half_open = False
        self._probing = False

    def wait(self, now: float) -> float:
        """Seconds until it may be asked; 0 for now."""
        if now < self._resting_until:
            return self._resting_until - now
        return _UNTIL_ONE_ENDS_SECONDS if self._probing else 0.0

    def wish(self, now: float) -> float:
        """Seconds for which the provider itself asked to be left alone; 0 for none."""
        return max(self._left_alone_until - now, 0.0)

    def enter(self, now: float) -> bool:
        """A call starts; True when it is the probe of a candidate that failed before."""
        probe = self._half_open and not self._probing and now >= self._resting_until
        self._probing = self._probing or probe
        return probe

    def leave(self, error: BaseException | None, now: float, *, probe: bool) -> None:
        """A call ended; one that was cancelled says nothing about the candidate."""
        self.withdraw(probe=probe)
        if error is None or isinstance(error, ProviderRejectedError):
            self._close()
        elif isinstance(error, ProviderError):
            self._fault(error, now, probe=probe)

    def withdraw(self, *, probe: bool) -> None:
        """A call was not sent after all."""
        if probe:
            self._probing = False

    def _close(self) -> None:
        self._faults = 0
        self._half_open = False
        self._cooldown = _FIRST_COOLDOWN_SECONDS

    def _fault(self, error: ProviderError, now: float, *, probe: bool) -> None:
        self._faults += 1
        rest = error.retry_after_seconds or 0.0
        self._left_alone_until = max(self._left_alone_until, now + rest)
        repeats = self._faults >= _FAULTS_TO_OPEN or isinstance(error, ProviderAuthenticationError)
        if probe or (repeats and now >= self._resting_until):  # else it is open already
            rest = max(rest, self._cooldown)
            self._cooldown = min(2 * self._cooldown, _LONGEST_COOLDOWN_SECONDS)
            self._half_open = True
        self._resting_until = max(self._resting_until, now + rest)


@dataclass
class Entry:
    """A call in a limiter's books.

    Attributes:
        at: when it started, on the clock's scale.
        tokens: what it is taken to consume.
        counted: whether it still counts.
    """

    at: float
    tokens: int
    counted: bool = True


class Limiter:
    """Knows the calls under way, and the calls and tokens of the last minute; not thread-safe."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._recent: deque[Entry] = deque()
        self._calls = 0
        self._tokens = 0
        self._under_way = 0

    def wait(self, tokens: int, now: float) -> float:
        """Seconds until there may be room for a call; 0 for now.

        A call of more tokens than the limit fits when no other counts.
        """
        self._forget(now)
        limits = self._limits
        if limits.concurrent is not None and self._under_way >= limits.concurrent:
            return _UNTIL_ONE_ENDS_SECONDS
        calls, left = self._calls, self._tokens
        room = math.inf
        if limits.tokens_per_minute is not None:
            room = limits.tokens_per_minute - min(tokens, limits.tokens_per_minute)
        most = math.inf if limits.requests_per_minute is None else limits.requests_per_minute - 1
        until = now
        for entry in self._recent:
            if calls <= most and left <= room:
                break
            calls, left, until = calls - entry.counted, left - entry.tokens, entry.at + _MINUTE
        return until - now

    def enter(self, tokens: int, now: float) -> Entry:
        """A call starts."""
        entry = Entry(now, tokens)
        self._under_way += 1
        if self._limits.requests_per_minute or self._limits.tokens_per_minute:
            self._recent.append(entry)
            self._calls += 1
            self._tokens += tokens
        else:
            entry.counted = False
        return entry

    def leave(self, entry: Entry, tokens: int | None) -> None:
        """A call ended, having consumed ``tokens`` if that is known."""
        self._under_way -= 1
        if entry.counted and tokens is not None:
            self._tokens += tokens - entry.tokens
            entry.tokens = tokens

    def withdraw(self, entry: Entry) -> None:
        """A call was not sent after all."""
        self.leave(entry, 0)
        if entry.counted:
            self._calls -= 1
            entry.counted = False

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0].at + _MINUTE <= now:
            entry = self._recent.popleft()
            self._calls -= entry.counted
            self._tokens -= entry.tokens
            entry.counted = False


class Ticket:
    """A call that entered; leaves exactly once, by :meth:`leave` or :meth:`withdraw`."""

    def __init__(self, gate: Gate, entry: Entry, *, probe: bool) -> None:
        self._gate = gate
        self._entry = entry
        self._probe = probe

    def leave(
        self, error: BaseException | None, tokens: int | None = None, *, own_limit: bool = False
    ) -> None:
        """Tell what the call came to.

        Args:
            error: what was raised, if anything. What is no ``ProviderError``, as a cancellation,
                says nothing about the candidate, and neither does a time limit that was short.
            tokens: what it consumed, if that is known.
            own_limit: whether its time limit was the candidate's own, which is never too short.
        """
        self._gate.leave(self._entry, error, tokens, probe=self._probe, own_limit=own_limit)

    def withdraw(self) -> None:
        """Tell that nothing was sent."""
        self._gate.withdraw(self._entry, probe=self._probe)


class Gate:
    """Lets calls through to one candidate; thread-safe.

    Args:
        limits: what it may be asked for.
        clock: seconds, from any start, that never go back.
    """

    def __init__(
        self, limits: RateLimits = _NO_LIMITS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._breaker = Breaker()
        self._limiter = Limiter(limits)
        self._clock = clock
        self._lock = threading.Lock()

    def enter(self, tokens: int, *, last_resort: bool = False) -> Ticket | float:
        """Start a call, or say after how many seconds to ask again.

        Args:
            tokens: what the call is expected to consume.
            last_resort: there is nobody else to ask: enter even during a cooldown.
        """
        with self._lock:
            now = self._clock()
            wait = self._limiter.wait(tokens, now)
            if not last_resort:
                wait = max(wait, self._breaker.wait(now))
            if wait > 0:
                return wait
            entry = self._limiter.enter(tokens, now)
            return Ticket(self, entry, probe=self._breaker.enter(now))

    def wish(self) -> float:
        """Seconds for which the provider itself asked to be left alone, whoever asks; 0 for none.

        Our own cooldowns are no such wish.
        """
        with self._lock:
            return self._breaker.wish(self._clock())

    def leave(
        self,
        entry: Entry,
        error: BaseException | None,
        tokens: int | None,
        *,
        probe: bool,
        own_limit: bool,
    ) -> None:
        """End a call, see :meth:`Ticket.leave`."""
        with self._lock:
            now = self._clock()
            self._limiter.leave(entry, tokens)
            was_short = not own_limit and now - entry.at < _SHORT_SECONDS
            if isinstance(error, ProviderTimeoutError) and was_short:
                error = TimeoutError()
            self._breaker.leave(error, now, probe=probe)

    def withdraw(self, entry: Entry, *, probe: bool) -> None:
        """End a call that was not sent."""
        with self._lock:
            self._limiter.withdraw(entry)
            self._breaker.withdraw(probe=probe)
