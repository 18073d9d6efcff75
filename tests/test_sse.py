"""The decoder of server-sent events: the same events, wherever the bytes are split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optllm_router.transports._sse import EventDecoder, EventTooLargeError

STREAM = (
    "\ufeffdata: first\n\n: a comment\ndata:second\r\ndata:  line\r\n\r\n"
    'event: x\rdata\r\rid: 1\n\nretry: 5\ndata: {"ü": "👋"}\n\n\n\ndata: [DONE]\n\ndata: cut off'
).encode()
EVENTS = ["first", "second\n line", "", '{"ü": "👋"}', "[DONE]"]


def decoded(*pieces: bytes, most_bytes: int = 1000) -> list[str]:
    decoder = EventDecoder(most_bytes)
    return [event for piece in pieces for event in decoder.feed(piece)]


def test_events():
    assert decoded(STREAM) == EVENTS


@pytest.mark.parametrize("place", range(len(STREAM) + 1))
def test_a_split_anywhere_changes_nothing(place):
    assert decoded(STREAM[:place], STREAM[place:]) == EVENTS
    assert decoded(STREAM[:place], b"", STREAM[place:]) == EVENTS


def test_byte_by_byte():
    assert decoded(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == EVENTS


line = st.sampled_from(["data: a", "data:", "data", "data: \u2028", ": x", "event: y", "", "dat"])
end = st.sampled_from(["\n", "\r", "\r\n"])


def reference(text: str) -> list[str]:
    """The standard's algorithm, on the whole text at once."""
    events, data = [], []
    *lines, _ = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for one in lines:
        name, _, value = one.partition(":")
        if not one:
            events += ["\n".join(data)] if data else []
            data = []
        elif name == "data":
            data.append(value.removeprefix(" "))
    return events


@given(st.lists(st.tuples(line, end)), st.lists(st.integers(0, 200)))
def test_any_stream_split_anyhow(lines, places):
    text = "".join(one + ending for one, ending in lines)
    whole = text.encode()
    cuts = [0, *sorted(place for place in places if place < len(whole)), len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(cuts)]
    assert decoded(*pieces, most_bytes=10_000) == reference(text)


@given(st.lists(st.binary()))
def test_no_bytes_do_anything_unforeseen(pieces):
    try:
        events = decoded(*pieces)
    except UnicodeDecodeError:
        return
    assert all(isinstance(event, str) for event in events)


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("field", [b"data: ", b": ", b"x", b"data: a\ndata: "])
def test_what_is_held_is_bounded(field, step):
    endless = field + b"x" * 5000
    with pytest.raises(EventTooLargeError, match="1000 bytes"):
        decoded(*(endless[i : i + step] for i in range(0, len(endless), step)))


def test_many_events_are_not_one_large_one():
    assert len(decoded(b"data: x\n\n" * 5000)) == 5000
