"""Sound in a prompt: how long it plays at most, and so how many tokens it can count as."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping
from typing import Any

TOKENS_PER_SECOND = 50
"""Upper bound: one for each frame of a speech encoder (20 ms) before any are merged. Gemini counts
32 a second (ai.google.dev, "Understand and count tokens"), Voxtral 12.5 (one for 80 ms), OpenAI
about 10."""
CHUNK_SECONDS = 30
"""Some providers count whole chunks: 13 s are 30 s to Voxtral (Scaleway's FAQ on its API)."""
_MP3_BYTES_PER_SECOND = 1000
"""The lowest bit rate that a frame of MPEG layer III can have is 8 kbit/s (id3.org/mp3Frame)."""
_SAMPLE_RATES = range(8_000, 192_001)
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_HEAD_BYTES = 3 * 1365
"""Of a file, where its format is looked for; base64 has four characters for three bytes."""


def sound_fault(sound: Any) -> str:
    """What is wrong with an ``input_audio``, for people; empty where it is as it must be.

    It must be base64 of WAV with plain samples, or of MP3, and be what its format says: else
    nobody knows how long it plays.

    >>> sound_fault({"data": "//tQxAAA", "format": "mp3"})
    ''
    """
    if not isinstance(sound, Mapping) or set(sound) != {"data", "format"}:
        return "is not {'data': base64, 'format': 'wav' or 'mp3'}"
    data, form = sound["data"], sound["format"]
    if form not in ("wav", "mp3"):
        return "has a format other than 'wav' and 'mp3'"
    try:
        base64.b64decode(data.encode("ascii"), validate=True)
    except (AttributeError, UnicodeEncodeError, binascii.Error):
        return "has data that is not base64"
    if _bytes_per_second(data, form):
        return ""
    if form == "mp3":
        return "has data that does not begin as MP3 does"
    return "has data that is not WAV with plain samples, 8,000 to 192,000 of them per second"


def most_sound_tokens(sound: Any) -> int:
    """An upper bound on the tokens of an ``input_audio``.

    How long it plays follows from its size: of WAV with the rate in its header, of anything
    else with the lowest rate of MP3. The end of a chunk that has begun is counted, too.
    """
    data = str(sound.get("data")) if isinstance(sound, Mapping) else ""
    form = sound.get("format") if isinstance(sound, Mapping) else None
    rate = _bytes_per_second(data, form) or _MP3_BYTES_PER_SECOND
    chunks = math.ceil(len(data) * 3 / 4 / rate / CHUNK_SECONDS)
    return max(1, chunks) * CHUNK_SECONDS * TOKENS_PER_SECOND


def _bytes_per_second(data: str, form: Any) -> int | None:
    """The least that a file takes for a second; ``None`` when it is not of this format."""
    try:
        head = base64.b64decode(data[: _HEAD_BYTES // 3 * 4])
    except ValueError:  # not in ASCII, or cut short
        return None
    if form == "wav":
        return _wav_bytes_per_second(head)
    is_mp3 = head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
    return _MP3_BYTES_PER_SECOND if form == "mp3" and is_mp3 else None


def _wav_bytes_per_second(head: bytes) -> int | None:
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    start = 12
    while start + 24 <= len(head):
        name, size = struct.unpack_from("<4sI", head, start)
        if name == b"fmt ":
            return _samples_bytes_per_second(head[start + 8 : start + 8 + size])
        start += 8 + size + size % 2
    return None


def _samples_bytes_per_second(form: bytes) -> int | None:
    """By a ``fmt`` chunk, which says it three times over; ``None`` where it contradicts itself."""
    if len(form) < 16:
        return None
    kind, channels, samples, rate, block, bits = struct.unpack_from("<HHIIHH", form)
    if kind == _EXTENSIBLE and len(form) >= 26:
        (kind,) = struct.unpack_from("<H", form, 24)
    is_plain = kind in (_PCM, _FLOAT) and block * 8 == channels * bits > 0
    agrees = samples in _SAMPLE_RATES and rate == samples * block
    return int(rate) if is_plain and agrees else None
