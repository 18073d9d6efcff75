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
PROMPT_NANO, COMPLETION_NANO = 100, 3000
"""Prices per token."""

_SKILLS = {"arithmetic": 2.0}
_HARMLESS = ("rate_limit", "server_error", "garbage", "cut", "cut_early", "malformed")


def model_name(transport: str, kind: str) -> str:
    """Each transport has models of its own, so that its bill is known."""
    return f"{transport}-{kind}"


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
            "router": {"transport": transport, "tags": [f"{MIXED}:{str(kind == MIXED).lower()}"]},
        }
        for transport in TRANSPORTS
        for kind in KINDS
    ]


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
    plans = {kind: Faults(rates={kind: 1.0}) for kind in get_args(Fault)}
    plans[MIXED] = Faults(rates=dict.fromkeys(_HARMLESS, 0.5 / len(_HARMLESS)))
    faults = {
        model_name(transport, kind): plan
        for transport in TRANSPORTS
        for kind, plan in plans.items()
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


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve()
