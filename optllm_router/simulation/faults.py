"""What goes wrong on purpose: which call of which model fails, and how.

Whether a call fails depends on the seed, the model and the number of the call only: a run can
be repeated, and what will happen can be looked up without a server.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from optllm_router._errors import ConfigurationError
from optllm_router.simulation.stable_hash import stable_fraction

Fault: TypeAlias = Literal[
    "rate_limit",
    "server_error",
    "timeout",
    "garbage",
    "cut",
    "cut_early",
    "stall",
    "endless",
    "malformed",
    "wrong_type",
    "huge",
]
"""How a call fails.

Before any work is done, and for nothing: ``rate_limit``: 429 with ``retry-after``.
``server_error``: 500. ``timeout``: never answers. ``garbage``: 200 with a web page.

While the answer is sent, which is billed as far as it was made: ``cut``: the connection breaks
in the middle. ``cut_early``: it breaks after the headers. ``stall``: half of the answer, then
silence. ``endless``: it goes on for ever; a whole answer dribbles blanks. ``malformed``: JSON
that breaks off, in a stream that of one event. ``wrong_type``: the right answer, called
``text/html``. ``huge``: 10 MB of text, billed as the right answer.
"""

_FAULTS = get_args(Fault)


@dataclass(frozen=True)
class Faults:
    """A plan of failures; every model follows it on its own, counting its own calls.

    Attributes:
        rates: probability of each fault, 0..1, together at most 1.
        script: what happens to a model's first calls in order, None being no fault; the rates
            apply to the calls after it.
        seed: other seeds spread the same rates over other calls.
        retry_after_seconds: the ``retry-after`` of a 429, >= 0.

    >>> plan = Faults(script=("rate_limit", None, "cut"))
    >>> [plan.fault("sim-frontier", call) for call in range(4)]
    ['rate_limit', None, 'cut', None]
    """

    rates: Mapping[Fault, float] = field(default_factory=dict)
    script: Sequence[Fault | None] = ()
    seed: int = 0
    retry_after_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name in (*self.rates, *self.script):
            if name is not None and name not in _FAULTS:
                raise ConfigurationError(f"no fault {name!r}; choose from {', '.join(_FAULTS)}")
        if not all(rate >= 0 for rate in self.rates.values()) or math.fsum(self.rates.values()) > 1:
            raise ConfigurationError(
                f"fault rates must be >= 0 and add up to 1 at most, not {dict(self.rates)}"
            )
        if not self.retry_after_seconds >= 0:
            raise ConfigurationError(
                f"retry_after_seconds must be >= 0, not {self.retry_after_seconds}"
            )

    def fault(self, model: str, call: int) -> Fault | None:
        """Return what happens to the call number ``call`` (from 0) of ``model``."""
        if call < len(self.script):
            return self.script[call]
        if not self.rates:
            return None
        left = stable_fraction("fault", self.seed, model, call)
        for fault, rate in self.rates.items():
            left -= rate
            if left < 0:
                return fault
        return None


NO_FAULTS = Faults()


class FaultPlayer:
    """Follows the fault plans, counting the calls of each model since the plans were set.

    Args:
        faults: one plan for every model, or a plan by model name.
    """

    def __init__(self, faults: Faults | Mapping[str, Faults]) -> None:
        self._faults = faults
        self._calls: Counter[str] = Counter()

    def next(self, model: str) -> tuple[Faults, Fault | None]:
        """Count one call; return the plan that applies to it and what happens to it."""
        plans = self._faults
        plan = plans if isinstance(plans, Faults) else plans.get(model, NO_FAULTS)
        call = self._calls[model]
        self._calls[model] += 1
        return plan, plan.fault(model, call)
