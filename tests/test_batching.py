from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from optllm_router import Candidate, Price
from optllm_router._batching import Batcher
from optllm_router._errors import InvalidRequestError, OverloadedError
from optllm_router._openai_errors import as_openai_error
from optllm_router._options import read_options
from optllm_router._query import Query
from optllm_router._runtime import Runtime
from optllm_router.config import read_settings
from optllm_router.transports import HttpxTransport


class Recorder:
    """Doubles numbers, and keeps the batches in which they came."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.set()
        assert self.go.wait(10)
        if -1 in items:
            raise LookupError("unlucky")
        return [2 * item for item in items]


@pytest.fixture
def work() -> Recorder:
    return Recorder()


@pytest.fixture
def batcher(work):
    batcher = Batcher(work)
    yield batcher
    work.go.set()
    batcher.close()


def test_a_lone_item_is_a_batch_of_one(work, batcher):
    work.go.set()
    assert [batcher.submit(n).result() for n in (1, 2)] == [2, 4]
    assert work.batches == [[1], [2]]


def test_what_arrives_while_a_batch_is_computed_forms_the_next(work, batcher):
    first = batcher.submit(1)
    work.entered.wait()
    rest = [batcher.submit(n) for n in (2, 3, 4)]
    work.go.set()
    assert [first.result(), *(one.result() for one in rest)] == [2, 4, 6, 8]
    assert work.batches == [[1], [2, 3, 4]]


def test_a_window_waits_for_company():
    work = Recorder()
    work.go.set()
    batcher = Batcher(work, window_seconds=0.5)
    both = [batcher.submit(n) for n in (1, 2)]
    assert [one.result() for one in both] == [2, 4]
    assert work.batches == [[1, 2]]
    batcher.close()


def test_an_error_goes_to_the_whole_batch_and_to_no_other(work, batcher):
    first = batcher.submit(1)
    work.entered.wait()
    unlucky = [batcher.submit(n) for n in (2, -1)]
    work.go.set()
    assert first.result() == 2
    for one in unlucky:
        with pytest.raises(LookupError, match="unlucky"):
            one.result()
    assert batcher.submit(5).result() == 10


def test_what_was_cancelled_in_time_is_not_computed(work, batcher):
    batcher.submit(1)
    work.entered.wait()
    unwanted, wanted = batcher.submit(2), batcher.submit(3)
    assert unwanted.cancel()
    work.go.set()
    assert wanted.result() == 6
    assert work.batches == [[1], [3]]


def test_closing_finishes_what_is_queued(work, batcher):
    first = batcher.submit(1)
    work.entered.wait()
    rest = [batcher.submit(n) for n in range(2, 50)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    work.go.set()
    closing.join()
    assert first.result(0) == 2
    assert [one.result(0) for one in rest] == list(range(4, 100, 2))
    batcher.close()
    with pytest.raises(InvalidRequestError, match="closed; create a new one"):
        batcher.submit(1)


def test_nobody_waits_forever_for_a_batcher_that_closes():
    def keep_asking(batcher) -> None:
        for n in range(100_000):
            try:
                waiting = batcher.submit(n)
            except InvalidRequestError:
                return
            assert waiting.result(timeout=10) == n

    # Threads that switch this often meet in the gap between looking and queueing.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(40):
            batcher = Batcher(list)
            with ThreadPoolExecutor(8) as pool:
                asking = [pool.submit(keep_asking, batcher) for _ in range(8)]
                batcher.close()
                for one in asking:
                    one.result()
    finally:
        sys.setswitchinterval(interval)


def test_an_abandoned_batcher_ends_its_thread():
    threads = threading.active_count()
    assert Batcher(list).submit(1).result() == 1
    gc.collect()
    assert threading.active_count() == threads


def test_lines_are_served_in_turn_when_more_waits_than_a_batch_takes(work):
    batcher = Batcher(work, most_per_batch=4)
    first = batcher.submit(0, "many")
    work.entered.wait()
    many = [batcher.submit(n, "many") for n in range(1, 8)]
    few = [batcher.submit(n, "few") for n in (100, 101)]
    one = batcher.submit(200, "one")
    work.go.set()
    assert [waiting.result() for waiting in (first, *many, *few, one)][-1] == 400
    assert work.batches == [[0], [1, 100, 200, 2], [101, 3, 4, 5], [6, 7]]
    batcher.close()


def test_what_waits_is_bounded_and_who_is_refused_is_told(work):
    batcher = Batcher(work, most_waiting=3)
    first = batcher.submit(0)
    work.entered.wait()
    waiting = [batcher.submit(n) for n in (1, 2, 3)]
    with pytest.raises(OverloadedError, match="3 calls wait"):
        batcher.submit(4)
    work.go.set()
    assert [one.result() for one in (first, *waiting)] == [0, 2, 4, 6]
    assert batcher.submit(5).result() == 10
    batcher.close()


def test_a_full_batch_does_not_wait_out_its_window():
    batcher = Batcher(list, window_seconds=60.0, most_per_batch=2)
    assert [one.result(timeout=10) for one in [batcher.submit(n) for n in (1, 2)]] == [1, 2]
    batcher.close()


def test_closing_does_not_wait_out_a_window():
    batcher = Batcher(list, window_seconds=60.0)
    one = batcher.submit(1)
    batcher.close()
    assert one.result(0) == 1


def test_overload_is_openai_s_503():
    import openai

    error = as_openai_error(OverloadedError("full"))
    assert isinstance(error, openai.InternalServerError)
    assert isinstance(error, OverloadedError)
    assert (error.status_code, error.code) == (503, "overloaded")


@pytest.fixture
def instant(work):
    """A batcher whose work takes no time."""
    work.go.set()
    batcher = Batcher(work)
    yield batcher
    batcher.close()


def test_who_helps_works_in_its_own_thread():
    workers = []
    batcher = Batcher(lambda items: [workers.append(threading.current_thread()) for _ in items])
    waiting = [batcher.submit(n, wake=False) for n in range(2)]
    assert not any(one.done() for one in waiting)
    batcher.help()
    assert [one.result(0) for one in waiting] == [None, None]
    assert set(workers) == {threading.current_thread()}
    batcher.close()


def test_many_are_not_worked_on_by_who_helps(work, instant):
    waiting = [instant.submit(n, wake=False) for n in range(100)]
    instant.help()
    assert [one.result(10) for one in waiting] == [2 * n for n in range(100)]
    assert work.batches == [list(range(100))]


def test_what_arrives_while_one_helps_forms_the_next_batch(work, batcher):
    first = batcher.submit(1, wake=False)
    helper = threading.Thread(target=batcher.help)
    helper.start()
    work.entered.wait()
    rest = [batcher.submit(2), batcher.submit(3, wake=False)]
    batcher.help()  # somebody is at it
    assert work.batches == [[1]]
    work.go.set()
    helper.join()
    assert [first.result(10), *(one.result(10) for one in rest)] == [2, 4, 6]
    assert work.batches == [[1], [2, 3]]


def test_who_helps_does_not_cut_a_window_short():
    batcher = Batcher(list, window_seconds=0.5)
    waiting = batcher.submit(1, wake=False)
    batcher.help()
    assert not waiting.done()
    assert waiting.result(10) == 1
    batcher.close()


def test_an_error_is_not_the_helpers(work, instant):
    unlucky = instant.submit(-1, wake=False)
    instant.help()
    with pytest.raises(LookupError, match="unlucky"):
        unlucky.result(0)
    assert instant.submit(5).result(10) == 10


def test_closing_finishes_what_nobody_helped_with(work, instant):
    waiting = instant.submit(1, wake=False)
    instant.close()
    assert waiting.result(0) == 2


@pytest.fixture
def runtime(work, sqlite_url):
    """Decides nothing: its batches are told to ``work``, by what their calls belong to."""
    models = [Candidate("m", "x/m", Price(Decimal(1), Decimal(1), "test"), 10)]
    runtime = Runtime(read_settings(models, store=sqlite_url), HttpxTransport())
    runtime._batcher.close()
    runtime._batcher = Batcher(
        lambda items: work([one.query.scopes for one in items]), most_per_batch=4
    )
    yield runtime
    work.go.set()
    runtime.close()


@pytest.mark.parametrize(
    ("owner", "varied"),
    [
        *(("tenant", varied) for varied in ("user", "job", "tags")),
        *(("user", varied) for varied in ("job", "tags")),
    ],
)
def test_who_calls_for_ever_other_jobs_waits_in_one_line(work, runtime, owner, varied):
    def decide(**options: str) -> tuple[str, ...]:
        scopes = read_options(**options).scopes
        query = Query.from_messages([{"role": "user", "content": "Hi"}], scopes=scopes)
        runtime.decide(query, "auto", None)
        return scopes

    first = decide(**{owner: "many"})
    work.entered.wait()
    many = [decide(**{owner: "many", varied: str(n)}) for n in range(4)]
    few = [decide(**{owner: "few"}) for _ in range(2)]
    nobody = decide()
    work.go.set()
    runtime._batcher.close()
    assert work.batches == [
        [first],
        [many[0], few[0], nobody, many[1]],
        [few[1], many[2], many[3]],
    ]
