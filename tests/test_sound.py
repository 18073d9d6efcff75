"""Sound in messages: how many tokens it can count as, who hears it, and what it costs."""

from __future__ import annotations

import base64
import io
import math
import struct
import wave

import litellm_clients
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optllm_router import AsyncOptLLM, BudgetExceededError, InvalidRequestError, OptLLM
from optllm_router._types import Call, Usage
from optllm_router.candidates import read_candidates
from optllm_router.pricing import CostForecast, PriceCatalogue, most_audio_tokens, sound_fault

MP3 = b"\xff\xf3\x14\xc4" + bytes(2_000)
PROMPT_USD, AUDIO_USD = 1e-6, 40e-6


def recording(seconds: float, *, rate: int = 8_000, channels: int = 1, width: int = 2) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(bytes(round(seconds * rate) * channels * width))
    return file.getvalue()


def heard(data: bytes, form: str = "wav") -> dict:
    return {"data": base64.b64encode(data).decode(), "format": form}


def saying(*sounds: dict) -> list[dict]:
    parts = [{"type": "input_audio", "input_audio": sound} for sound in sounds]
    return [{"role": "user", "content": [{"type": "text", "text": "What is said?"}, *parts]}]


# How many tokens


@settings(deadline=None)
@given(
    st.floats(0, 70),
    st.sampled_from([8_000, 16_000]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
)
def test_a_recording_is_bounded_by_how_long_it_plays(seconds, rate, channels, width):
    data = recording(seconds, rate=rate, channels=channels, width=width)
    most = most_audio_tokens(saying(heard(data)))
    chunks = math.ceil(seconds / 30)
    assert most >= 1_500 * max(1, chunks)
    assert most <= 1_500 * (chunks + 1)


def test_mp3_is_taken_to_play_as_long_as_any_could():
    assert sound_fault(heard(MP3, "mp3")) == ""
    minutes = MP3 + bytes(118_000)
    assert most_audio_tokens(saying(heard(minutes, "mp3"))) >= 120 * 50
    assert most_audio_tokens(saying(heard(MP3, "mp3"), heard(MP3, "mp3"))) == 2 * 1_500


def test_what_is_no_recording_at_all_is_bounded_as_the_slowest():
    for data in (b"RIFF", b"Ogg" * 40_000):
        sound = heard(data)
        assert most_audio_tokens(saying(sound)) >= len(data) / 1_000 * 50
    assert most_audio_tokens([{"content": [{"type": "input_audio"}]}]) == 1_500


def header(**changes) -> bytes:
    """A WAV header that a chunk nobody asked for comes before."""
    of = {"kind": 1, "channels": 1, "samples": 8_000, "rate": 16_000, "block": 2, "bits": 16}
    values = struct.pack("<HHIIHH", *{**of, **changes}.values())
    junk = b"JUNK" + struct.pack("<I", 3) + bytes(4)
    return b"RIFF\0\0\0\0WAVE" + junk + b"fmt " + struct.pack("<I", 16) + values + bytes(99)


def test_chunks_before_the_format_are_passed_over():
    assert sound_fault(heard(header())) == ""


@pytest.mark.parametrize(
    ("sound", "what"),
    [
        (None, "is not"),
        ({"data": "AAAA"}, "is not"),
        (heard(MP3, "mp3") | {"url": "https://x.example/a.mp3"}, "is not"),
        (heard(MP3, "flac"), "format"),
        ({"data": 5, "format": "mp3"}, "not base64"),
        ({"data": "https://x.example/a.mp3", "format": "mp3"}, "not base64"),
        ({"data": "//8é", "format": "mp3"}, "not base64"),
        ({"data": heard(MP3)["data"] + "\n", "format": "mp3"}, "not base64"),
        (heard(b"", "mp3"), "does not begin as MP3"),
        (heard(recording(1), "mp3"), "does not begin as MP3"),
        (heard(MP3, "wav"), "plain samples"),
        (heard(header(kind=49)), "plain samples"),  # GSM: 1,625 bytes a second
        (heard(header(samples=192_001, rate=384_002)), "plain samples"),
        (heard(header(rate=160_000)), "plain samples"),
        (heard(header(block=20)), "plain samples"),
        (heard(header()[:30]), "plain samples"),
        (heard(b"RIFF\0\0\0\0WAVE" + bytes(9)), "plain samples"),
    ],
)
def test_sound_of_unknown_length_is_refused(sound, what):
    assert what in sound_fault(sound)


# Who hears, and at which rate


def test_who_hears_is_known_from_the_catalogue_or_the_configuration():
    rates = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}
    catalogue = PriceCatalogue(
        {"a": {**rates, "supports_audio_input": True}, "b": rates}, source=""
    )
    assert catalogue.facts("a").unable == frozenset({"vision", "tools", "json_schema"})
    assert catalogue.facts("b").unable == catalogue.facts("c").unable == {"audio"}
    own = {"litellm_params": {"model": "openai/ours", "api_key": "unused", **rates}}
    told = {**own, "model_info": {"supports_audio_input": True}}
    assert [one.unable for one in read_candidates([own, told])] == [{"audio"}, frozenset()]


def test_sound_is_forecast_at_its_rate_and_teaches_nothing_about_text():
    (candidate,) = read_candidates([ears("http://127.0.0.1:9")])
    forecast = CostForecast([candidate])
    silent, loud = Call([], prompt_bytes=40), Call([], prompt_bytes=40, most_audio_tokens=1_000)
    before = forecast.expected_usd(silent)[0]
    assert forecast.expected_usd(loud)[0] - before == pytest.approx(200 * AUDIO_USD)
    for _ in range(100):
        forecast.learn(0, 40, Usage(10 + 5_000, 200, audio_tokens=5_000))
    assert forecast.expected_usd(silent)[0] == pytest.approx(before, rel=0.1)


# Over HTTP


def ears(base_url: str) -> dict:
    return {
        "model_name": "ears",
        "litellm_params": {
            "model": "openai/sim-frontier",
            "api_base": base_url,
            "api_key": "unused",
            "input_cost_per_token": PROMPT_USD,
            "input_cost_per_audio_token": AUDIO_USD,
            "output_cost_per_token": PROMPT_USD,
            "max_tokens": 100,
        },
        "model_info": {"supports_audio_input": True},
    }


@pytest.fixture(params=["litellm", "httpx"])
def hearing(request, server, models) -> list[dict]:
    return [*models[-1:], {**ears(server.base_url), "router": {"transport": request.param}}]


@pytest.fixture
def client(hearing, sqlite_url):
    with OptLLM(hearing, store=sqlite_url, budget="1 USD", seed=0, max_retries=0) as client:
        yield client


def charged_nano(usage) -> int:
    details = usage.prompt_tokens_details
    assert details.audio_tokens == 85
    plain = usage.prompt_tokens - 85 + usage.completion_tokens
    return plain * 1_000 + 85 * 40_000


def test_a_sound_is_heard_by_who_can_and_billed_as_sound(client, server):
    answer = client.chat.completions.create(model="auto", messages=saying(heard(recording(1))))
    assert answer.optllm.candidate == "ears"
    assert answer.optllm.left_out == {"sim-tiny": "takes no audio"}
    assert client.balance.spent_nano == charged_nano(answer.usage)
    assert server.requests == {"sim-frontier": 1}
    assert client.verify() == []


def test_a_stream_about_a_sound_is_billed_as_sound(client):
    stream = client.chat.completions.create(
        model="auto",
        messages=saying(heard(MP3, "mp3")),
        stream=True,
        stream_options={"include_usage": True},
    )
    *_, last = stream
    assert client.balance.spent_nano == charged_nano(last.usage)


def test_responses_take_sound_too(client):
    sound = {"type": "input_audio", "input_audio": heard(recording(1))}
    said = [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}, sound]}]
    assert client.responses.create(model="auto", input=said).output_text


def test_without_blocking_the_event_loop(hearing, sqlite_url):
    async def main():
        async with AsyncOptLLM(hearing, store=sqlite_url, budget="1 USD", seed=0) as client:
            messages = saying(heard(recording(1)))
            return await client.chat.completions.create(model="auto", messages=messages)

    assert litellm_clients.run(main()).optllm.candidate == "ears"


def test_what_it_can_cost_as_sound_has_to_fit_the_budget(hearing, sqlite_url, server):
    """Half a minute is 1,500 tokens at most: 6 cents as sound, a tenth of a cent as text."""
    with (
        OptLLM(hearing, store=sqlite_url, budget="0.05 USD", seed=0) as client,
        pytest.raises(BudgetExceededError, match="nothing was sent"),
    ):
        client.chat.completions.create(model="auto", messages=saying(heard(recording(1))))
    assert server.requests == {}


def test_a_model_that_does_not_hear_is_not_asked_by_name(client):
    with pytest.raises(InvalidRequestError, match="'sim-tiny' takes no audio"):
        client.chat.completions.create(model="sim-tiny", messages=saying(heard(recording(1))))


def test_sounds_are_checked_before_anything_is_sent(client, server, monkeypatch):
    further = saying(heard(MP3, "mp3"))
    further[0]["content"][1]["cache"] = True
    for messages, what in [(saying(heard(MP3)), "plain samples"), (further, "'cache'")]:
        with pytest.raises(InvalidRequestError, match=what):
            client.chat.completions.create(model="auto", messages=messages)
    monkeypatch.setattr("optllm_router._messages._MOST_SOUND", 5_000)
    with pytest.raises(InvalidRequestError, match="5344 characters of sound; at most 5000"):
        client.chat.completions.create(
            model="auto", messages=saying(heard(MP3, "mp3"), heard(MP3, "mp3"))
        )
    assert server.requests == {}
