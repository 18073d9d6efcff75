"""Two flows that race for one answer, with threads or as tasks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import Any

from optllm_router._flow import arun, run
from optllm_router._steps import Answer, Close, NotCarriedOutError, Race, Step

_log = logging.getLogger("optllm_router")


def race(
    step: Race, perform: Callable[[Step], Any], start: Callable[[Callable[[], None]], None]
) -> Answer | None:
    """Carry out a race with threads.

    The thread of the slower flow cannot be interrupted: it goes on until its provider has answered,
    settles that, and ends.

    Args:
        step: the race.
        perform: carries out a flow's step.
        start: begins work on another thread.
    """
    advancing = threading.Lock()
    is_over = threading.Event()

    def perform_alone(one: Step) -> Any:
        if is_over.is_set() and not isinstance(one, Close):
            raise NotCarriedOutError
        advancing.release()
        try:
            return perform(one)
        finally:
            advancing.acquire()

    def carry_out(flow: Generator[Step, Any, Answer | None], done: Future[Answer | None]) -> None:
        try:
            with advancing:
                done.set_result(run(flow, perform_alone))
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is wanted
            done.set_exception(error)

    def started(flow: Generator[Step, Any, Answer | None]) -> Future[Answer | None]:
        done: Future[Answer | None] = Future()
        start(partial(carry_out, flow, done))
        return done

    try:
        pending = {started(step.first)}
        ended, _ = wait(pending, step.after_seconds)
        if not ended:
            try:
                pending.add(started(step.second))
            except RuntimeError as error:  # the first, which is paid for, may still answer
                _log.warning("no other candidate is asked beside a slow one: %s", error)
        while pending:
            ended, pending = wait(pending, return_when=FIRST_COMPLETED)
            for one in ended:
                if (answer := one.result()) is not None:
                    return answer
        return None
    finally:
        is_over.set()


async def arace(
    step: Race, perform: Callable[[Step], Awaitable[Any]], settle: Callable[[Step], Any]
) -> Answer | None:
    """Carry out a race as tasks, of which the slower one is cancelled, and settled then.

    Args:
        step: the race.
        perform: as for :func:`optllm_router._flow.arun`.
        settle: as there.
    """
    tasks = [asyncio.create_task(arun(step.first, perform, settle))]
    try:
        await asyncio.wait(tasks, timeout=step.after_seconds)
        if not tasks[0].done():
            tasks.append(asyncio.create_task(arun(step.second, perform, settle)))
        pending = set(tasks)
        while pending:
            ended, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for one in ended:
                if (answer := one.result()) is not None:
                    return answer
        return None
    except GeneratorExit:  # nothing can be awaited any more; the tasks settle on their own
        _cancel(tasks)
        tasks.clear()
        raise
    finally:
        _cancel(tasks)
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)


def _cancel(tasks: list[asyncio.Task[Answer | None]]) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop is closed: their leases will end
        for one in tasks:
            one.cancel()
