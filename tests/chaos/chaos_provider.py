"""The provider of the chaos suite: models that fail in one way each, in a process of its own.

``python chaos_provider.py`` prints where it listens, then answers each line of its input with its
bill so far, and stops at the end of its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from decimal import Decimal
from typing import get_args

from optllm_router.simulation import Fault, Faults, SimulatedModel, SimulationServer

TRANSPORTS = ("httpx", "litellm")
SOUND, MIXED = "sound", "mixed"
KINDS = (SOUND, MIXED, *get_args(Fault))
"""What a model does: answer, fail in one way, or in any way, and answer every other time."""
SILENT = ("timeout", "stall", "endless")
"""What only its time limit ends; all else has time, also on a busy machine."""
LOUD = "loud"
"""The tag of what ends by itself, and soon: a sound one is always among them."""
EMBEDDING = "embedding"
"""What a model for embeddings does: as the mixed ones, for all are one at the provider."""
PROMPT_NANO, COMPLETION_NANO = 100, 3000
"""Prices per token."""

_SKILLS = {"arithmetic": 2.0}
_HARMLESS = ("rate_limit", "server_error", "garbage", "cut", "cut_early", "malformed")
_RETRY_AFTER_SECONDS = 0.3
_EMBEDDED_AS = "sim-embedding"


def model_name(transport: str, kind: str) -> str:
    """Each transport has models of its own, so that its bill is known."""
    return f"{transport}-{kind}"


def billed_as(candidate: str) -> str:
    """Under what the provider bills a candidate."""
    return _EMBEDDED_AS if candidate.endswith(f"-{EMBEDDING}") else candidate


def model_entries(base_url: str) -> list[dict]:
    """All models, as a LiteLLM ``model_list`` names them."""
    return [
        {
            "model_name": model_name(transport, kind),
            "litellm_params": {
                "model": f"openai/{model_name(transport, kind)}",
                "api_base": base_url,
                "api_key": "unused",
                "input_cost_per_token": str(Decimal(PROMPT_NANO) / 10**9),
                "output_cost_per_token": str(Decimal(COMPLETION_NANO) / 10**9),
                "max_tokens": 20_000,  # a provider that never ends is left before that
            },
            "router": {"transport": transport, "tags": _tags(kind)},
        }
        for transport in TRANSPORTS
        for kind in KINDS
    ]


def embedding_entries(base_url: str) -> list[dict]:
    """The models for embeddings."""
    return [
        {
            "model_name": model_name(transport, EMBEDDING),
            "litellm_params": {
                "model": f"openai/{_EMBEDDED_AS}",
                "api_base": base_url,
                "api_key": "unused",
                "input_cost_per_token": str(Decimal(PROMPT_NANO) / 10**9),
            },
            "model_info": {"mode": "embedding"},
            "router": {"transport": transport},
        }
        for transport in TRANSPORTS
    ]


def _tags(kind: str) -> list[str]:
    return [*[MIXED] * (kind == MIXED), *[LOUD] * (kind not in (*SILENT, "huge"))]


class ProviderProcess:
    """The provider, for as long as a ``with`` block lasts.

    Attributes:
        base_url: where it listens.
    """

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.base_url: str = json.loads(self._read())
        return self

    def __exit__(self, *_) -> None:
        self._process.communicate(timeout=60)

    def bill(self) -> dict[str, int]:
        """Nano-dollars by model, once it has noticed who has gone: when two looks are the same."""
        seen = self._ask()
        while True:
            time.sleep(0.3)
            seen, before = self._ask(), seen
            if seen == before:
                return seen

    def _ask(self) -> dict[str, int]:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def _read(self) -> str:
        return self._process.stdout.readline()


def _serve() -> None:
    models = [
        SimulatedModel(
            model_name(transport, kind), PROMPT_NANO / 1000, COMPLETION_NANO / 1000, _SKILLS, 40
        )
        for transport in TRANSPORTS
        for kind in KINDS
    ]
    plans = {kind: _always({kind: 1.0}) for kind in get_args(Fault)}
    plans[MIXED] = _always(dict.fromkeys(_HARMLESS, 0.5 / len(_HARMLESS)))
    faults = {
        _EMBEDDED_AS: _always(dict.fromkeys(get_args(Fault), 0.05)),
        **{
            model_name(transport, kind): plan
            for transport in TRANSPORTS
            for kind, plan in plans.items()
        },
    }
    with SimulationServer(models, faults=faults, chunk_tokens=2, chunk_seconds=0.002) as server:
        _say(server.base_url)
        for _ in sys.stdin:
            _say(
                {
                    name: sum(
                        PROMPT_NANO * one.prompt_tokens + COMPLETION_NANO * one.completion_tokens
                        for one in usages
                    )
                    for name, usages in server.served.items()
                }
            )


def _always(rates: dict[Fault, float]) -> Faults:
    return Faults(rates=rates, retry_after_seconds=_RETRY_AFTER_SECONDS)


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve()
