from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import threading
from collections.abc import Iterator
from decimal import Decimal

import pytest
from openai.types.responses import Response
from sqlalchemy import select

from optllm_router import (
    AsyncOptLLM,
    Candidate,
    ConfigurationError,
    OptLLM,
    Price,
    StoreError,
    _conversations,
)
from optllm_router._conversations import Conversations, Transcript
from optllm_router._types import Chunk, Completion, Usage
from optllm_router.config import read_settings
from optllm_router.store import Database, Partner, Partners, partners, schema

ASKED = [
    {"role": "system", "content": "You fix bugs."},
    {"role": "user", "content": "Fix the test."},
]
ANSWER = {"role": "assistant", "content": "Done."}
MORE = {"role": "user", "content": "Commit it."}
BIG = Partner("big", 1200, 0.0)


@pytest.fixture
def conversations() -> Conversations:
    conversations = Conversations()
    conversations.answered(ASKED, [ANSWER], BIG)
    return conversations


def test_a_follow_up_finds_who_answered(conversations):
    assert conversations.partner([*ASKED, ANSWER, MORE]) == BIG


def test_a_first_question_has_no_partner(conversations):
    assert conversations.partner(ASKED) is None


def test_extras_of_an_answer_do_not_matter_and_what_it_says_does(conversations):
    with_extras = {**ANSWER, "refusal": None, "annotations": [], "tool_calls": None}
    assert conversations.partner([*ASKED, with_extras, MORE]) == BIG
    assert conversations.partner([*ASKED, {**ANSWER, "content": "Done!"}, MORE]) is None
    assert conversations.partner([ASKED[1], ANSWER, MORE]) is None


def test_each_of_several_answers_can_be_gone_on_with():
    conversations = Conversations()
    answers = [{"role": "assistant", "content": text} for text in ("a", "b")]
    conversations.answered(ASKED, answers, BIG)
    assert [conversations.partner([*ASKED, one, MORE]) for one in answers] == [BIG, BIG]


def test_the_results_of_tools_belong_to_the_turn():
    call = {"id": "c1", "type": "function", "function": {"name": "run", "arguments": "{}"}}
    asks = {"role": "assistant", "content": None, "tool_calls": [call]}
    conversations = Conversations()
    conversations.answered(ASKED, [asks], BIG)
    result = {"role": "tool", "tool_call_id": "c1", "content": "green"}
    assert conversations.partner([*ASKED, {**asks, "content": ""}, result]) == BIG
    other = {**asks, "tool_calls": [{**call, "id": "c2"}]}
    assert conversations.partner([*ASKED, other, result]) is None


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "text", "text": "Done."}],
        [{"type": "text", "text": "Do"}, {"type": "text", "text": "ne."}],
        [{"type": "text", "text": "Done."}, {"type": "refusal", "refusal": "No."}],
    ],
)
def test_a_text_is_the_same_in_parts(conversations, parts):
    assert conversations.partner([*ASKED, {**ANSWER, "content": parts}, MORE]) == BIG
    other = [{"type": "text", "text": "Done!"}]
    assert conversations.partner([*ASKED, {**ANSWER, "content": other}, MORE]) is None


def test_a_picture_is_a_part_of_what_was_said():
    def asked(url: str) -> list[dict]:
        picture = {"type": "image_url", "image_url": {"url": url}}
        return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}]

    conversations = Conversations()
    conversations.answered(asked("https://x/a.png"), [ANSWER], BIG)
    assert conversations.partner([*asked("https://x/a.png"), ANSWER, MORE]) == BIG
    assert conversations.partner([*asked("https://x/b.png"), ANSWER, MORE]) is None


def test_calls_of_custom_tools_are_told_apart():
    call = {"id": "c1", "type": "custom", "custom": {"name": "run", "input": "ls"}}
    asks = {"role": "assistant", "content": None, "tool_calls": [call]}
    conversations = Conversations()
    conversations.answered(ASKED, [asks], BIG)
    assert conversations.partner([*ASKED, asks, MORE]) == BIG
    for custom in ({"name": "run", "input": "rm"}, {"name": "walk", "input": "ls"}):
        other = {**asks, "tool_calls": [{**call, "custom": custom}]}
        assert conversations.partner([*ASKED, other, MORE]) is None


def test_a_named_conversation_is_known_by_its_name():
    conversations = Conversations()
    conversations.answered(ASKED, [ANSWER], BIG, name="ticket-7")
    assert conversations.partner([MORE], name="ticket-7") == BIG
    assert conversations.partner([*ASKED, ANSWER, MORE]) is None
    assert conversations.partner([MORE], name="ticket-8") is None


@pytest.mark.parametrize("name", [None, "ticket-7"])
def test_what_another_tenant_says_is_another_conversation(name):
    conversations = Conversations()
    conversations.answered(ASKED, [ANSWER], BIG, name, ("tenant:a",))
    follow_up = [*ASKED, ANSWER, MORE]
    assert conversations.partner(follow_up, name, ("tenant:a",)) == BIG
    for others in ((), ("tenant:b",), ("tenant:a", "user:b")):
        assert conversations.partner(follow_up, name, others) is None


def test_memory_is_bounded_and_keeps_what_is_in_use(monkeypatch):
    monkeypatch.setattr(_conversations, "_KEPT", 10)
    conversations = Conversations()
    for n in range(100):
        conversations.answered(ASKED, [ANSWER], Partner(str(n), 0, 0.0), name=str(n))
        assert conversations.partner([], name="0") is not None
    assert len(conversations._partners) == 10


def test_nothing_that_was_said_is_kept(conversations):
    gc.collect()
    kept = repr(vars(conversations))
    assert not any(word in kept for word in ("Fix", "Done", "bugs"))


@pytest.mark.parametrize(
    "strange",
    [
        {"role": "assistant"},
        {"role": "assistant", "content": "\ud83d", "tool_calls": [1, {}]},
        {"role": "assistant", "content": [{"type": ["text"]}, 5]},
    ],
)
def test_strange_messages_are_hashed_like_any_other(strange):
    conversations = Conversations()
    conversations.answered(ASKED, [strange], BIG)
    assert conversations.partner([*ASKED, strange, MORE]) == BIG


SECRET = "s" * 32


@pytest.fixture
def database(store_url):
    with contextlib.closing(Database(store_url)) as opened:
        yield opened


@pytest.fixture
def sharing(database) -> list[Conversations]:
    """Of two processes that know one secret."""
    return [Conversations(Partners(database, clock=lambda: 60.0), SECRET) for _ in range(2)]


def asked(conversations: Conversations, *said: object) -> list[Partner | None]:
    """Who answered last, in both ways to ask."""
    return [conversations.partner(*said), asyncio.run(conversations.apartner(*said))]


def test_processes_with_one_secret_share_who_answered(sharing, database):
    one, other = sharing
    one.answered(ASKED, [ANSWER], BIG, None, ("tenant:a",))
    database.catch_up()
    follow_up = [*ASKED, ANSWER, MORE]
    assert asked(other, follow_up, None, ("tenant:a",)) == [BIG, BIG]
    assert asked(other, follow_up, None, ("tenant:b",)) == [None, None]
    assert asked(other, [*ASKED, {**ANSWER, "content": "Done!"}, MORE]) == [None, None]
    stranger = Conversations(Partners(database), "t" * 32)
    assert asked(stranger, follow_up, None, ("tenant:a",)) == [None, None]


def test_who_answered_last_under_a_name_is_who_did_so_in_any_process(sharing, database):
    one, other = sharing
    later = Partner("small", 1300, 10.0)
    one.answered(ASKED, [ANSWER], BIG, "ticket-7")
    other.answered(ASKED, [ANSWER], later, "ticket-7")
    database.catch_up()
    assert asked(one, [MORE], "ticket-7") == asked(other, [MORE], "ticket-7") == [later, later]
    one.answered(ASKED, [ANSWER], BIG, "ticket-7")  # an old one that comes late changes nothing
    database.catch_up()
    assert asked(other, [MORE], "ticket-7") == [later, later]


def test_the_store_is_asked_only_for_turns_that_this_process_does_not_know(database):
    class Counted(Partners):
        asked = 0

        def find(self, digest: str) -> Partner | None:
            self.asked += 1
            return super().find(digest)

    shared = Counted(database)
    conversations = Conversations(shared, SECRET)
    conversations.partner(ASKED)
    conversations.answered(ASKED, [ANSWER], BIG)
    assert conversations.partner([*ASKED, ANSWER, MORE]) == BIG
    assert shared.asked == 0
    conversations.partner([*ASKED, {**ANSWER, "content": "Done!"}, MORE])
    assert shared.asked == 1


def test_the_store_tells_nothing_of_what_was_said(sharing, database):
    sharing[0].answered(ASKED, [ANSWER], BIG)
    with database.read() as connection:
        (row,) = connection.execute(schema.conversations.select()).all()
    assert row[1:] == ("big", 1200, 0.0)
    for key in (b"", SECRET.encode()):  # a digest without the key, or the secret itself as one
        plain = Conversations(None, "")
        plain._key = key
        assert plain._said([*ASKED, ANSWER], ()).hex() != row.digest


def test_what_is_shared_is_bounded_and_ends(database, monkeypatch):
    monkeypatch.setattr(partners, "_ROWS_BETWEEN_DELETIONS", 10)
    monkeypatch.setattr(partners, "_KEPT", 30)
    now = 1_000_000.0
    shared = Partners(database, clock=lambda: now)

    def kept() -> list[float]:
        with database.read() as connection:
            moments = select(schema.conversations.c.answered_at)
            return sorted(connection.scalars(moments))

    for n in range(100):
        shared.keep([f"{n}"], Partner("a", 1, now + n)).result()
    assert len(kept()) < 40
    assert kept()[-30:] == [now + n for n in range(70, 100)]
    now += 8 * 86_400
    shared.keep([f"later {n}" for n in range(10)], Partner("a", 1, now)).result()
    assert kept() == [now] * 10


def test_a_store_that_cannot_be_read_costs_no_answer(sharing, database, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise StoreError("the disk is gone")

    monkeypatch.setattr(database._points, "row", fail)
    monkeypatch.setattr(database._points, "arow", fail)
    sharing[0].answered(ASKED, [ANSWER], BIG, "ticket-7")
    assert asked(sharing[0], [MORE], "ticket-7") == [BIG, BIG]
    assert asked(sharing[1], [MORE], "ticket-7") == [None, None]
    assert caplog.text.count("the disk is gone") == 4


def test_a_write_that_fails_is_told_and_the_next_one_is_kept(sqlite_url, caplog):
    with contextlib.closing(Database(f"{sqlite_url}?timeout=0")) as database:
        shared, partner = Partners(database, clock=lambda: 60.0), Partner("a", 1, 0.0)
        path = sqlite_url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            lost = [shared.keep([f"{n}"], partner) for n in range(3)]
            assert isinstance(lost[-1].exception(30), StoreError)
        shared.keep(["3"], partner).result()
        assert (shared.find("0"), shared.find("3")) == (None, partner)
    assert caplog.text.count("could not be kept") == len(set(map(id, lost)))


def test_many_turns_are_one_write(database):
    shared, partner = Partners(database, clock=lambda: 60.0), Partner("a", 1, 0.0)
    before_them = threading.Event()
    database.submit(lambda _: before_them.wait(60))  # the writer comes to none of them before
    kept = [shared.keep([f"{n}"], partner) for n in range(200)]
    before_them.set()
    assert len(set(map(id, kept))) == 1
    kept[0].result(60)
    assert [shared.find(f"{n}") for n in range(200)] == [partner] * 200


@pytest.mark.parametrize("secret", ["", "short", 5, "os.environ/NOBODY_SET_IT"])
def test_a_secret_is_long(sqlite_url, secret):
    with pytest.raises(ConfigurationError, match="conversation_secret"):
        OptLLM(["openai/gpt-4o-mini"], store=sqlite_url, conversation_secret=secret)


def test_a_secret_may_stand_in_the_environment_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("OUR_SECRET", SECRET)
    settings = read_settings(["openai/gpt-4o-mini"], conversation_secret="os.environ/OUR_SECRET")
    assert settings.conversation_secret == SECRET
    assert SECRET not in repr(settings)


class Provider:
    """In this process: answers with the model's name, after so many prompt tokens."""

    def check(self, candidates) -> None:
        pass

    def send(self, candidate, call) -> Completion:
        said = {"role": "assistant", "content": f"by {candidate.name}", "refusal": None}
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        body = {"id": "x", "object": "chat.completion", "created": 0, "choices": [choice]}
        return Completion(body, Usage(2000, 10))

    async def asend(self, candidate, call) -> Completion:
        return self.send(candidate, call)

    def stream(self, candidate, call) -> Iterator[Chunk]:
        for delta in ({"role": "assistant", "content": ""}, {"content": f"by {candidate.name}"}):
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            yield Chunk({"id": "x", "created": 0, "model": "m", "choices": [choice]})
        yield Chunk({"id": "x", "choices": []}, Usage(2000, 10))


def test_a_client_keeps_the_conversations_of_its_tenants_apart(sqlite_url):
    model = Candidate("one", "x/one", Price(Decimal(10), Decimal(10), "test"), 100)
    settings = {"budget": "1 USD for tenant:*", "store": sqlite_url, "transport": Provider()}
    with OptLLM([model], **settings) as client:
        client.with_options(tenant="one").chat.completions.create(messages=ASKED)
        turn = [*ASKED, {"role": "assistant", "content": "by one"}, MORE]
        conversations = client._runtime._conversations
        assert conversations.partner(turn, scopes=("tenant:one",)) is not None
        assert conversations.partner(turn, scopes=("tenant:two",)) is None


@pytest.mark.parametrize("named", [False, True])
def test_a_client_goes_on_with_who_answered(sqlite_url, named):
    price = Price(Decimal(10), Decimal(10), "test")
    models = [Candidate(name, f"x/{name}", price, 100) for name in ("one", "two", "three")]
    options = {"extra_body": {"optllm": {"conversation": "ticket-7"}}} if named else {}
    client = OptLLM(models, store=sqlite_url, transport=Provider(), explore=5.0, seed=1)
    with client:
        first = [
            client.chat.completions.create(model="auto", messages=ASKED, **options)
            for _ in range(1 if named else 12)
        ]
        said = {answer.choices[0].message.content for answer in first}
        assert named or len(said) > 1, "exploration asks more than one of them"
        for answer in first:
            turn = [*ASKED, answer.choices[0].message.model_dump(), MORE]
            if named:
                turn = [MORE]
            for _ in range(5):
                follow_up = client.chat.completions.create(model="auto", messages=turn, **options)
                assert follow_up.optllm.candidate == answer.optllm.candidate


def test_a_client_alone_keeps_nothing_of_conversations_in_its_store(sqlite_url):
    model = Candidate("one", "x/one", Price(Decimal(10), Decimal(10), "test"), 100)
    with OptLLM([model], store=sqlite_url, transport=Provider()) as client:
        client.chat.completions.create(messages=ASKED)
    with contextlib.closing(Database(sqlite_url)) as database, database.read() as connection:
        assert connection.execute(schema.conversations.select()).all() == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_client_goes_on_with_who_answered_in_another_process(sqlite_url, asynchronous):
    price = Price(Decimal(10), Decimal(10), "test")
    models = [Candidate(name, f"x/{name}", price, 100) for name in ("one", "two", "three")]
    settings = {"store": sqlite_url, "transport": Provider(), "conversation_secret": SECRET}
    questions = [[{"role": "user", "content": f"Fix test {n}."}] for n in range(8)]
    with OptLLM(models, explore=50.0, seed=1, **settings) as first:
        answers = [first.chat.completions.create(messages=one) for one in questions]
    turns = [
        [*one, answer.choices[0].message.model_dump(), MORE]
        for one, answer in zip(questions, answers, strict=True)
    ]

    async def follow_up() -> list[str]:
        async with AsyncOptLLM(models, explore=50.0, seed=2, **settings) as other:
            asking = [other.chat.completions.create(messages=turn) for turn in turns]
            return [(await one).optllm.candidate for one in asking]

    if asynchronous:
        stayed = asyncio.run(follow_up())
    else:
        with OptLLM(models, explore=50.0, seed=2, **settings) as other:
            told = [other.chat.completions.create(messages=turn) for turn in turns]
        stayed = [answer.optllm.candidate for answer in told]
    assert stayed == [answer.optllm.candidate for answer in answers]
    assert len(set(stayed)) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_response_says_is_gone_on_with(sqlite_url, stream):
    price = Price(Decimal(10), Decimal(10), "test")
    models = [Candidate(name, f"x/{name}", price, 100) for name in ("one", "two", "three")]

    def respond(client: OptLLM, said: list) -> Response:
        made = client.responses.create(model="auto", input=said, instructions="Fix.", stream=stream)
        return list(made)[-1].response if stream else made

    with OptLLM(models, store=sqlite_url, transport=Provider(), explore=5.0, seed=1) as client:
        for _ in range(6):
            said = [{"role": "user", "content": "Fix the test."}]
            first = respond(client, said)
            for _ in range(4):
                said += [*first.output, MORE]
                assert respond(client, said).output_text == first.output_text


def test_a_streamed_answer_is_known_by_its_whole():
    def chunk(index: int = 0, **delta: object) -> dict:
        return {"choices": [{"index": index, "delta": delta}]}

    def call(**parts: object) -> dict:
        return chunk(tool_calls=[parts])

    transcript = Transcript()
    for body in (
        chunk(role="assistant", content=""),
        chunk(content="Let me "),
        chunk(content="look.", index=0),
        call(index=0, id="c1", type="function", function={"name": "run", "arguments": ""}),
        call(index=0, function={"arguments": '{"path": '}),
        call(index=1, id="c2", function={"name": "read", "arguments": "{}"}),
        call(index=0, function={"arguments": '"a"}'}),
        call(index=2, id="c3", type="custom", custom={"name": "sh", "input": "l"}),
        call(index=2, custom={"input": "s"}),
        chunk(index=1, content="Or not."),
        {"choices": [], "usage": {}},
    ):
        transcript.record(body)
    conversations = Conversations()
    conversations.answered(ASKED, transcript.messages, BIG)
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "run", "arguments": '{"path": "a"}'}},
        {"id": "c2", "type": "function", "function": {"name": "read", "arguments": "{}"}},
        {"id": "c3", "type": "custom", "custom": {"name": "sh", "input": "ls"}},
    ]
    whole = {"role": "assistant", "content": "Let me look.", "tool_calls": calls}
    other = {"role": "assistant", "content": "Or not."}
    assert conversations.partner([*ASKED, whole, MORE]) == BIG
    assert conversations.partner([*ASKED, other, MORE]) == BIG
    assert conversations.partner([*ASKED, {**whole, "tool_calls": calls[:2]}, MORE]) is None
