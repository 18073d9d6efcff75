"""Connections that are cut when the time of a call is over, for calls that block their thread.

A socket's time limit starts anew with every byte, and a provider that dribbles never meets it.
Here one thread looks after all calls under way: at the deadline of one it shuts down the socket
that the call's thread waits on, whose read then ends as if the provider had hung up.

The socket is found on the stack of that thread, as httpcore's network stream: litellm, which
shows nobody its connections, is cut like a client of our own. A connection of HTTP/2 is spared,
for it carries other calls, too; so is whatever does not go through httpcore. Coroutines need none
of this: they are cancelled.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import socket
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from optllm_router._types import Call, Chunk
from optllm_router.transports._bodies import is_answer

if TYPE_CHECKING:
    from typing_extensions import Self

_AGAIN_SECONDS = 0.02
"""When to look again at a thread that was not at its socket."""
_LINGER_SECONDS = 1.0
"""How long the thread waits for further calls before it ends."""


class Deadline:
    """When a call must be over; in its ``with`` blocks, its thread's connection is cut then.

    A block in which that happened raises ``TimeoutError``, whatever its read made of it.

    Args:
        seconds: from now.

    Attributes:
        seconds: the same.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at = time.monotonic() + seconds
        self.thread = 0
        self.has_cut = False

    @property
    def seconds_left(self) -> float:
        """Until it; 0 or less when it is over."""
        return self.at - time.monotonic()

    def __enter__(self) -> Self:
        self.thread = threading.get_ident()
        _watch.begin(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _watch.end(self)
        if self.has_cut and (error is None or isinstance(error, Exception)):
            raise TimeoutError


class StreamDeadline(Deadline):
    """When a stream's first token must be there, and, once it is, when all of it must be.

    Args:
        call: what is asked for, from now on.
    """

    def __init__(self, call: Call) -> None:
        whole, first = call.timeout_seconds, call.first_token_seconds
        super().__init__(whole if first is None else min(first, whole))
        self._whole = whole

    def saw(self, chunk: Chunk) -> None:
        """A chunk has come; outside of the ``with`` blocks."""
        if self.seconds < self._whole and is_answer(chunk):
            self.at += self._whole - self.seconds
            self.seconds = self._whole


class _Watch:
    """The calls under way, and the thread that looks after them."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._under_way: set[Deadline] = set()
        self._wakes_at = -math.inf  # while there is no thread

    def begin(self, deadline: Deadline) -> None:
        with self._changed:
            self._under_way.add(deadline)
            if self._wakes_at == -math.inf:
                self._wakes_at = deadline.at
                threading.Thread(target=self._run, name="optllm-deadlines", daemon=True).start()
            elif deadline.at < self._wakes_at:
                self._changed.notify()

    def end(self, deadline: Deadline) -> None:
        with self._changed:
            self._under_way.discard(deadline)

    def _run(self) -> None:
        with self._changed:
            idle_since = math.inf
            while True:
                now = time.monotonic()
                # A thread cannot leave its block meanwhile, and take a new connection.
                for deadline in self._under_way:
                    if deadline.at <= now and _cut(deadline.thread):
                        deadline.has_cut = True
                idle_since = math.inf if self._under_way else min(idle_since, now)
                if now - idle_since >= _LINGER_SECONDS:
                    self._wakes_at = -math.inf
                    return
                first = min((one.at for one in self._under_way), default=math.inf)
                self._wakes_at = now + min(max(first - now, _AGAIN_SECONDS), _LINGER_SECONDS)
                self._changed.wait(self._wakes_at - now)


_watch = _Watch()


def _forget() -> None:
    """A forked copy of this process has none of its threads."""
    global _watch
    _watch = _Watch()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _cut(thread: int) -> bool:
    """Shut down the socket that a thread waits on; False when it is at none."""
    found = _connection(_stack(thread))
    if found is None:
        return False
    with contextlib.suppress(OSError):
        socket.socket.shutdown(found, socket.SHUT_RDWR)  # also of TLS, whose own would unwrap it
    return True


def _stack(thread: int) -> FrameType | None:
    """The innermost frame of a thread.

    To ask for it holds a lock of the interpreter. A collection of garbage that began meanwhile
    would wait for whoever needs that lock: a deadlock before Python 3.12 (python/cpython#106883).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread)
    finally:
        if collects:
            gc.enable()


def _connection(frame: FrameType | None) -> socket.socket | None:
    """The socket of the innermost network stream on a stack, unless calls share it."""
    import httpcore

    found = None
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("httpcore."):
            owner = frame.f_locals.get("self")
            if isinstance(owner, httpcore.HTTP2Connection):
                return None
            if found is None and isinstance(owner, httpcore.NetworkStream):
                found = owner.get_extra_info("socket")
        frame = frame.f_back
    return found if isinstance(found, socket.socket) else None
