"""Receipts: sums that are the ledger's, and comparisons that hold what they promise."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import math
import random
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pytest

from optllm_router import AsyncOptLLM, OptLLM
from optllm_router._errors import ConfigurationError, InvalidRequestError, UnpricedModelError
from optllm_router._money import Budget
from optllm_router._types import Candidate, Completion, Decision, Outcome, Price, Usage
from optllm_router.ledger import LeasingLedger, Ledger, Reservation
from optllm_router.pricing import charge_nano
from optllm_router.receipts import Estimate, make_receipt
from optllm_router.receipts._estimate import total
from optllm_router.receipts._lengths import Lengths
from optllm_router.receipts.receipt import read_moment
from optllm_router.simulation import SIMULATED_MODELS, grade, make_tasks
from optllm_router.store import Database, RecordedUsage, Records, Spending, Spent

DAY = 86_400.0
MODELS = {model.name: model for model in SIMULATED_MODELS}
CANDIDATES = [
    Candidate(
        name,
        f"openai/{name}",
        Price(
            Decimal(str(model.price_prompt_usd_per_mtok)) * 1000,
            Decimal(str(model.price_completion_usd_per_mtok)) * 1000,
            "simulated",
        ),
        max_output_tokens=400,
    )
    for name, model in MODELS.items()
]
DEAREST = max(CANDIDATES, key=lambda one: one.price.completion).name


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Local:
    """Simulated models, without HTTP."""

    def check(self, candidates) -> None:
        pass

    def send(self, candidate, call) -> Completion:
        reply = MODELS[candidate.name].reply(call.messages[-1]["content"])
        message = {"role": "assistant", "content": reply.text}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        usage = Usage(reply.prompt_tokens, reply.completion_tokens)
        return Completion({"id": "x", "choices": choices}, usage)

    async def asend(self, candidate, call) -> Completion:
        return self.send(candidate, call)


@pytest.fixture
def database(store_url):
    database = Database(store_url)
    yield database
    database.close()


@pytest.fixture(scope="module")
def traffic(tmp_path_factory):
    """A store after 160 answers of simulated models, most of them graded; and the tasks."""
    url = f"sqlite:///{tmp_path_factory.mktemp('receipts')}/optllm.db"
    tasks = make_tasks(160, np.random.default_rng(5))
    settings = {"policy": "willingness_to_pay:0.002", "seed": 5, "budget": "9 USD per day"}
    with OptLLM(CANDIDATES, store=url, transport=Local(), **settings) as client:
        for place, task in enumerate(tasks):
            messages = [{"role": "user", "content": task.prompt}]
            answer = client.chat.completions.create(model="auto", messages=messages)
            if place % 4:
                score = grade(task, answer.choices[0].message.content)
                client.feedback.create(answer.id, score=score)
    return url, tasks


@pytest.fixture
def recorded(traffic):
    database = Database(traffic[0])
    yield database
    database.close()


def truth(tasks, name: str) -> tuple[float, float]:
    """What one model would have charged for all tasks in USD, and its success rate."""
    price = next(one.price for one in CANDIDATES if one.name == name)
    replies = [MODELS[name].reply(task.prompt) for task in tasks]
    nano = sum(charge_nano(price, Usage(r.prompt_tokens, r.completion_tokens)) for r in replies)
    scores = [grade(task, r.text) for task, r in zip(tasks, replies, strict=True)]
    return nano / 1e9, float(np.mean(scores))


# Sums


def random_calls(database: Database, clock: Clock, seed: int) -> Ledger:
    """A hundred and twenty calls over days that end in every way."""
    chance = random.Random(seed)
    ledger, records = Ledger(database, clock), Records(database, clock)
    ledger.set_budget(Budget(10, name="all"))
    ledger.set_budget(Budget(10, name="acme", scope="tenant:acme"))
    for number in range(120):
        clock.now += chance.random() * 6 * DAY / 120
        id, model = f"d{number:03d}", chance.choice("abc")
        amount, cost = chance.randint(1, 10**6), chance.randint(0, 2 * 10**6)
        scopes = ("tenant:acme",) if chance.random() < 0.4 else ()
        source = chance.choice(["list 1", "list 2"])
        ledger.reserve(Reservation(f"{id}-0", id, model, amount, scopes, source, 60)).result()
        usage, how = None, chance.choice(["settle", "estimate", "report", "full", "release", "die"])
        if how in ("settle", "estimate", "report"):
            kinds = {
                "cached_tokens": chance.randint(0, 5),
                "reasoning_tokens": chance.randint(0, 5),
            }
            reported = cost if how == "report" else None
            usage = Usage(
                chance.randint(5, 50),
                chance.randint(5, 50),
                how == "estimate",
                reported_nano=reported,
                **kinds,
            )
            ledger.settle(f"{id}-0", cost, estimated=usage.estimated)
        elif how == "full":
            ledger.settle_in_full(f"{id}-0")
        elif how == "release":
            ledger.release(f"{id}-0")
        outcome = Outcome(id, model, "ok" if usage else "error", usage, cost, 0.1)
        if how != "die":
            records.add_outcome(outcome, attempt=0, prompt_bytes=9)
    ledger.reserve(Reservation("last-0", "last", "a", 77, (), "list 1", 60)).result()
    clock.now += 30.0  # the last one is still under way
    ledger.recover()
    return ledger


@pytest.mark.parametrize("seed", range(2))
def test_sums_are_the_ledger_s_to_the_nano_dollar(database, seed):
    clock = Clock(20_000 * DAY)
    ledger = random_calls(database, clock, seed)
    receipt = make_receipt(database, since=0, baseline="none", now=clock.now + 1)
    balances = {balance.budget: balance for balance in ledger.balances()}
    assert ledger.verify() == []
    assert receipt.total.spent_nano == balances["all"].spent_nano > 10**6
    assert receipt.total.open_nano == balances["all"].reserved_nano >= 77
    for name in ("model", "day", "price_table"):
        assert sum(receipt.by[name].values(), Spent()) == receipt.total, name
    assert receipt.by["scope"]["everything"] == receipt.total
    assert receipt.by["scope"]["tenant:acme"].spent_nano == balances["acme"].spent_nano
    assert set(receipt.by["price_table"]) == {"list 1", "list 2"}
    assert set(receipt.by["day"]) <= {f"2024-10-0{day}" for day in (4, 5, 6, 7, 8)}
    some = receipt.total
    for figure in asdict(some).values():
        assert isinstance(figure, int)
    assert min(some.expired_nano, some.estimated_nano, some.reported_nano, some.cached_tokens) > 0
    assert some.expired_nano + some.estimated_nano + some.reported_nano < some.spent_nano


def test_two_periods_make_one(database):
    clock = Clock(20_000 * DAY)
    random_calls(database, clock, 7)
    start, middle, end = 20_000 * DAY, 20_001.5 * DAY, clock.now + 1
    first, second, both = (
        make_receipt(database, since=since, until=until, baseline="none").total
        for since, until in ((start, middle), (middle, end), (start, end))
    )
    assert first + second == both
    assert first.calls > 20 < second.calls


def test_an_empty_store_has_an_empty_receipt(database):
    receipt = make_receipt(database, since="1d")
    assert receipt.total == Spent()
    assert receipt.by == {"model": {}, "scope": {}, "day": {}, "price_table": {}}
    assert receipt.baseline is None
    assert receipt.no_baseline == "there are no answers to compare"


def test_calls_that_no_budget_watches_have_a_row_of_their_own(database):
    ledger = Ledger(database)
    ledger.reserve(Reservation("d-0", "d", "m", 10, (), "list", 60)).result()
    ledger.settle("d-0", 7).result()
    receipt = make_receipt(database, since="1h", baseline="none")
    assert receipt.by["scope"][""] == receipt.total
    assert receipt.total.spent_nano == 7


def test_money_for_calls_to_come_is_counted_and_is_no_call(database):
    clock = Clock(20_000 * DAY)
    ledger = LeasingLedger(database, clock)
    ledger.set_budget(Budget(10))
    for number in range(20):
        call = Reservation(f"{number}-0", f"{number}", "m", 1000, (), "list", 60)
        assert ledger.reserve(call).result() is None
        ledger.settle(call.id, 7)
    receipt = make_receipt(database, since=0, baseline="none", now=clock.now + 1)
    assert (receipt.total.calls, receipt.total.open_calls) == (20, 0)
    assert receipt.total.open_nano == receipt.by["model"][""].open_nano > 0
    assert receipt.by["model"]["m"].spent_nano == 140
    ledger.close()
    receipt = make_receipt(database, since=0, baseline="none", now=clock.now + 1)
    assert set(receipt.by["model"]) == {"m"}
    assert receipt.total.open_nano == 0


# Moments


def test_moments_are_read_as_people_write_them():
    assert read_moment("90m", DAY, "since") == DAY - 5400
    assert read_moment("2w", 20 * DAY, "since") == 6 * DAY
    assert read_moment(timedelta(hours=1), 4000.0, "since") == 400.0
    assert read_moment("1970-01-02T01:00:00+01:00", 0.0, "since") == DAY
    assert read_moment(datetime(1970, 1, 2, tzinfo=timezone.utc), 0.0, "since") == DAY
    assert read_moment(12, 0.0, "since") == 12.0


@pytest.mark.parametrize("value", ["", "yesterday", "0d", "7 y", "-1d", True, math.nan, [], None])
def test_what_is_no_moment_is_refused_with_its_value(value):
    with pytest.raises(ConfigurationError) as caught:
        read_moment(value, 0.0, "since")
    assert f"since {value!r} is no moment" in str(caught.value)


@pytest.mark.parametrize("value", ["999999w", timedelta.max, -1e12, 1e300, timedelta.min])
def test_a_moment_that_no_calendar_knows_is_refused(value):
    with pytest.raises(ConfigurationError, match="outside the years 1 to 9999"):
        read_moment(value, 0.0, "since")


def test_a_baseline_without_a_price_is_told_even_without_answers(sqlite_url):
    with contextlib.closing(Database(sqlite_url)) as database:
        with pytest.raises(ConfigurationError, match="'nonesuch'"):
            make_receipt(database, baseline="nonesuch")
        with pytest.raises(ConfigurationError, match="'2030-01-01' is not before now"):
            make_receipt(database, since="2030-01-01", now=1e9)
        for baseline in (None, "none", "gpt-4o-mini"):
            assert make_receipt(database, baseline=baseline).baseline is None


def test_a_period_that_ends_before_it_starts_is_refused(database):
    with pytest.raises(ConfigurationError, match="since '1d' is not before until '2d'"):
        make_receipt(database, since="1d", until="2d")


# Against one model for everything


@pytest.mark.parametrize("name", list(MODELS))
def test_the_truth_lies_within_the_intervals(recorded, traffic, name):
    receipt = make_receipt(recorded, since="1h", baseline=name, candidates=CANDIDATES)
    cost, rate = truth(traffic[1], name)
    compared = receipt.baseline
    assert compared.answers == 160
    assert compared.cost_nano == receipt.total.spent_nano
    assert compared.cost_usd.low <= cost <= compared.cost_usd.high
    assert compared.cost_usd.value == pytest.approx(cost, rel=0.25)
    assert compared.savings.value == pytest.approx(
        1 - compared.cost_nano / 1e9 / compared.cost_usd.value
    )
    assert compared.success is None or (
        compared.success.rate.low <= rate <= compared.success.rate.high
    )


def test_the_dearest_candidate_is_what_is_compared_with(recorded):
    assert make_receipt(recorded, since="1h", candidates=CANDIDATES).baseline.model == DEAREST


def test_a_model_that_never_answered_has_an_honest_interval(recorded):
    price = Price(Decimal(1000), Decimal(9000), "list")
    unused = Candidate("unused", "openai/unused", price, 400)
    receipt = make_receipt(recorded, since="1h", baseline="unused", candidates=[unused])
    compared = receipt.baseline
    assert (compared.own_answers, compared.recorded_lengths, compared.recorded_scores) == (0, 0, 0)
    assert compared.success is None
    assert compared.cost_usd.high > 2 * compared.cost_usd.value > 4 * compared.cost_usd.low


@pytest.mark.parametrize("bound", [60, 150])
def test_an_answer_that_was_cut_off_is_no_whole_one(bound):
    """Of two models that answer alike, as exponential laws do; one had a bound half the time."""
    chance = np.random.default_rng(5)
    recorded = []
    for n in range(2_000):
        most = bound if n % 4 == 0 else 10**9
        tokens = 1 + int(chance.exponential(200.0))
        cut = tokens >= most
        usage = Usage(10, min(tokens, most), cut=cut)
        recorded.append(RecordedUsage(f"Question {n}?", "ab"[n % 2], 40, usage, 1))
    lengths = Lengths(recorded, "a")
    said = lengths.predict([f"Question {n}?" for n in range(0, 2_000, 20)])
    assert lengths.factor * said.mean() == pytest.approx(
        200.0, rel=0.2
    )  # 107 if cut ones are whole
    assert lengths.scatter == pytest.approx(1.0, abs=0.25)
    whole = Lengths([one for one in recorded if one.candidate == "b"], "b")
    assert lengths.factor_std > whole.factor_std


def test_a_model_of_which_all_answers_were_cut_off_has_an_honest_interval():
    recorded = [
        RecordedUsage(f"Question {n}?", "ab"[n % 2], 40, Usage(10, 50, cut=n % 2 == 0), 1)
        for n in range(400)
    ]
    lengths = Lengths(recorded, "a")
    assert lengths.calls == 200
    assert lengths.factor == 1.0
    assert lengths.factor_std > 0.3
    assert lengths.predict(["Question?"])[0] >= 50.0


def test_a_model_of_the_catalogue_need_not_be_configured(recorded):
    receipt = make_receipt(recorded, since="1h", baseline="openai/gpt-4o-mini")
    assert receipt.baseline.price_source.startswith("litellm ")
    with pytest.raises(UnpricedModelError, match="'openai/nobody-knows'"):
        make_receipt(recorded, since="1h", baseline="openai/nobody-knows")


def test_without_any_known_price_there_is_no_comparison(recorded):
    receipt = make_receipt(recorded, since="1h")
    assert receipt.baseline is None
    assert receipt.no_baseline.startswith("no price is known here of any model that answered")
    assert receipt.success.graded == 120
    assert receipt.success.predicted == 40


def test_a_free_model_saves_no_share(recorded):
    free = replace(CANDIDATES[0], name="free", price=Price(Decimal(0), Decimal(0), "list"))
    compared = make_receipt(recorded, since="1h", baseline="free", candidates=[free]).baseline
    assert compared.cost_usd == Estimate(0.0, 0.0, 0.0)
    assert compared.savings is None


def test_what_one_model_did_alone_is_known_exactly(database):
    records = Records(database)
    (candidate,) = [one for one in CANDIDATES if one.name == DEAREST]
    for number in range(20):
        id = f"d{number:02d}"
        records.add_decision(
            Decision(id, DEAREST, (), 0.5, 0.1, 1, 1.0, 0.0, ""), f"query {number}"
        )
        outcome = Outcome(id, DEAREST, "ok", Usage(10, 5 + number), 1000, 0.1)
        records.add_outcome(outcome, attempt=0, prompt_bytes=40)
        records.add_feedback(id, number % 2).result()
    compared = make_receipt(database, since="1h", candidates=[candidate]).baseline
    assert compared.cost_usd == Estimate(20e-6, 20e-6, 20e-6)
    assert compared.savings == Estimate(0.0, 0.0, 0.0)
    assert compared.success.rate == Estimate(0.5, 0.5, 0.5)
    assert (compared.success.graded, compared.success.predicted) == (20, 0)


def test_a_sample_is_bounded_and_even(recorded):
    with Spending.of(recorded, 0, 1e10) as spending:
        everything, some = spending.sample(10**6), spending.sample(50)
        assert spending.sample(1) == everything[-1:]
    assert len(everything) == 160
    assert some == everything[3::4]


def test_independent_parts_add_up_in_quadrature():
    parts = [Estimate(10.0, 7.0, 11.0), Estimate(5.0, 1.0, 5.0)]
    assert total(parts) == Estimate(15.0, 10.0, 16.0)


# Out into the world


def test_a_client_hands_out_its_receipt(traffic):
    url, _ = traffic
    with OptLLM(CANDIDATES, store=url, transport=Local()) as client:
        mine = client.receipt(since="1h", baseline="none")

    async def ask():
        async with AsyncOptLLM(CANDIDATES, store=url, transport=Local()) as client:
            return await client.receipt(since="1h", baseline="none")

    assert mine.total == asyncio.run(ask()).total
    assert mine.total.calls == 160


def test_rows_can_be_written_as_csv(recorded, tmp_path):
    receipt = make_receipt(recorded, since="1h", baseline="none")
    receipt.write_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == set(receipt.by["model"])
    assert sum(int(row["spent_nano"]) for row in rows) == receipt.total.spent_nano
    with pytest.raises(InvalidRequestError, match="by 'hour' is none of model, scope, day"):
        receipt.write_csv(tmp_path / "b.csv", "hour")


def optllm(*arguments: str, cwd) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from optllm_router.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
    )


def test_the_command_shows_and_writes_the_receipt(traffic, recorded, tmp_path):
    url = traffic[0]
    done = optllm("receipt", "--store", url, "--baseline", "openai/gpt-4o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    exact = make_receipt(recorded, baseline="none").total.spent_nano
    assert f"{exact / 1e9:.6f}" in done.stdout
    assert "all by openai/gpt-4o" in done.stdout
    assert "120 graded and 40 predicted" in done.stdout
    options = ("--baseline", "none", "--by", "price-table", "--csv", "rows.csv", "--json")
    done = optllm("receipt", "--store", url, *options, cwd=tmp_path)
    assert json.loads(done.stdout)["total"]["spent_nano"] == exact
    assert (tmp_path / "rows.csv").read_text().splitlines()[1].startswith("simulated,160,")


def test_the_command_says_what_is_wrong_in_one_line(traffic, tmp_path):
    for arguments, sentence in (
        (("--store", "sqlite:///none.db"), "no store at 'none.db'"),
        (("--store", traffic[0], "--since", "soon"), "since 'soon' is no moment"),
    ):
        done = optllm("receipt", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
