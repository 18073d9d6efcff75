"""How an answer was made: as ``answer.optllm``, and as headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from optllm_router._money import usd_from_nano
from optllm_router._steps import Paid
from optllm_router._types import Decision

_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""What stands in a header as it is; all else is percent-encoded, as in a URL."""
_LONGEST_HEADER = 1000


@dataclass(frozen=True)
class RoutingInfo:
    """How an answer was made: ``answer.optllm``.

    Attributes:
        decision_id: what ``feedback.create`` takes; also the answer's ``id``.
        candidate: who answered.
        tried: the names of those who were asked, in order, one per attempt; with hedging, also of
            those who were asked beside and answered later.
        p: predicted probability that this candidate's answer is right, 0..1.
        std: uncertainty of ``p``.
        expected_cost_usd: what the call to this candidate was expected to cost.
        cost_usd: what it cost.
        cost_nano: the same, exact, in nano-dollars.
        cost_estimated: True when the provider did not count tokens; the cost is then the most
            that the call can have cost.
        cached: True when the answer is from the cache, and nobody was asked.
        propensity: probability with which the policy made its choice, which is another candidate
            where that one failed.
        price: shadow price in successes per USD.
        reason: why this candidate, in one sentence; of a fallback, what became of those who were
            to be asked before.
        left_out: names of the candidates that cannot serve the call, each with the reason.
        latency_seconds: from sending to the whole answer.
        provider_id: the provider's own id of the answer, where it is known.
    """

    decision_id: str
    candidate: str
    tried: tuple[str, ...]
    p: float
    std: float
    expected_cost_usd: float
    cost_usd: float
    cost_nano: int
    cost_estimated: bool
    cached: bool
    propensity: float
    price: float
    reason: str
    left_out: Mapping[str, str]
    latency_seconds: float
    provider_id: str


def decided(decision: Decision) -> dict[str, Any]:
    """What was known before anybody was asked, by the names of :class:`RoutingInfo`."""
    return {
        "decision_id": decision.id,
        "candidate": decision.candidate,
        "p": decision.p,
        "std": decision.std,
        "expected_cost_usd": usd_from_nano(decision.expected_cost_nano),
        "propensity": decision.propensity,
        "price": decision.price,
        "reason": decision.reason,
        "left_out": decision.left_out,
    }


def routing_info(paid: Paid, provider_id: str = "") -> RoutingInfo:
    """How an answer was made, from what it took."""
    return RoutingInfo(
        **{**decided(paid.decision), "candidate": paid.candidate.name},
        tried=paid.tried,
        cost_usd=usd_from_nano(paid.cost_nano),
        cost_nano=paid.cost_nano,
        cost_estimated=paid.usage.estimated,
        cached=paid.usage.is_cached,
        latency_seconds=paid.latency_seconds,
        provider_id=provider_id,
    )


def routing_headers(decision: Decision, candidate: str, paid: Paid | None = None) -> dict[str, str]:
    """How an answer was made, as HTTP headers in printable ASCII.

    Args:
        decision: as who answers carries it out.
        candidate: who does.
        paid: what it took; ``None`` while a stream is under way.
    """
    values: dict[str, object] = {
        "decision-id": decision.id,
        "candidate": candidate,
        "p": f"{decision.p:.6g}",
        "std": f"{decision.std:.6g}",
        "propensity": f"{decision.propensity:.6g}",
        "expected-cost-nano": decision.expected_cost_nano,
        "reason": decision.reason[:_LONGEST_HEADER],
    }
    if decision.left_out:
        each = (f"{name} ({reason})" for name, reason in decision.left_out.items())
        values["left-out"] = ", ".join(each)[:_LONGEST_HEADER]
    if paid is not None:
        values["cost-nano"] = paid.cost_nano
        values["cost-estimated"] = str(paid.usage.estimated).lower()
        values["cached"] = str(paid.usage.is_cached).lower()
    headers = {f"x-optllm-{name}": quote(str(value), _PLAIN) for name, value in values.items()}
    return {"x-request-id": decision.id, **headers}
