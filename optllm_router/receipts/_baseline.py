"""What the same answers would have cost with one model for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optllm_router._money import usd_from_nano
from optllm_router._types import Price
from optllm_router.pricing import rates_at
from optllm_router.receipts._estimate import Estimate, total
from optllm_router.receipts._lengths import Lengths
from optllm_router.receipts._success import Success

if TYPE_CHECKING:
    from optllm_router.store import AnsweredCall, Answers

_LEAST_SHARE = 0.01
"""Of the value, that the lower end is taken to have where it is divided by."""


@dataclass(frozen=True)
class Baseline:
    """What the answers of a period would have cost with one model for all of them.

    Attributes:
        model: name of the model.
        price_source: the price table that its price is from.
        answers: how many answers are compared; failed attempts are not.
        cost_nano: what these did cost.
        own_answers: of these, those that were the model's own, whose cost is known.
        sampled: from how many of the others the rest is extrapolated.
        recorded_lengths: from how many of its own answers the model's lengths are predicted.
        cost_usd: what all of them would have cost.
        savings: 1 minus what they did cost over that; below 0 where the model would have been
            cheaper, ``None`` where it would have been free.
        recorded_scores: from how many scores of its own answers its success is predicted.
        success: what it would have had; ``None`` when none of its answers was ever graded.
    """

    model: str
    price_source: str
    answers: int
    cost_nano: int
    own_answers: int
    sampled: int
    recorded_lengths: int
    cost_usd: Estimate
    savings: Estimate | None
    recorded_scores: int
    success: Success | None


def cost_usd(
    model: str,
    price: Price,
    answers: Mapping[str, Answers],
    sample: Sequence[AnsweredCall],
    lengths: Lengths,
) -> Estimate:
    """What all answers would have cost at a model.

    The model's own answers cost what they did. For each sampled one of the others, its prompt
    (cached as far as it was) and an answer of the model's expected length are priced, and the
    sum is extrapolated.

    Args:
        model: name of the model.
        price: what it charges.
        answers: of the period, by candidate.
        sample: some of them.
        lengths: of the model's answers.
    """
    own = answers.get(model)
    known = usd_from_nano(own.cost_nano) if own else 0.0
    others = [one for one in sample if one.candidate != model]
    count = sum(one.count for name, one in answers.items() if name != model)
    if not others:
        return Estimate(known, known, known)
    expected = lengths.predict([one.query for one in others])
    priced = [
        _priced(price, one, tokens, lengths.prompt_factor)
        for one, tokens in zip(others, expected.tolist(), strict=True)
    ]
    prompts, completions = (np.array(part) * 1e-9 for part in zip(*priced, strict=True))
    each = prompts + lengths.factor * completions
    unseen = max(0.0, 1.0 - len(each) / count)
    noise = (
        each.var() * unseen / len(each)
        + (lengths.factor * completions.mean() * lengths.scatter) ** 2 / count
    )
    return total(
        [
            Estimate(known, known, known),
            Estimate.lognormal(count * float(prompts.mean()), 1.0, lengths.prompt_factor_std),
            Estimate.lognormal(
                count * float(completions.mean()), lengths.factor, lengths.factor_std
            ),
            Estimate.normal(0.0, count * math.sqrt(noise)),
        ]
    ).within(known, math.inf)


def savings(cost_nano: int, instead: Estimate) -> Estimate | None:
    """1 minus what was paid over what would have been; ``None`` when that is nothing."""
    if not instead.value > 0:
        return None
    paid, least = usd_from_nano(cost_nano), _LEAST_SHARE * instead.value
    ends = (1.0 - paid / max(usd, least) for usd in (instead.value, instead.low, instead.high))
    return Estimate(*ends)


def _priced(
    price: Price, call: AnsweredCall, tokens: float, prompt_factor: float
) -> tuple[float, float]:
    """Nano-dollars for the prompt, with any fee, and for the answers."""
    usage = call.usage
    rates = rates_at(price, usage.prompt_tokens * prompt_factor)
    special = {"cached": usage.cached_tokens, "cache_write": usage.cache_write_tokens}
    if price.audio is not None:
        special["audio"] = usage.audio_tokens
    plain = max(0, usage.prompt_tokens - sum(special.values()))
    prompt = float(rates["prompt"]) * plain
    prompt += sum(float(rates[kind]) * count for kind, count in special.items())
    completion = float(rates["completion"]) * tokens * call.choices
    return float(price.request) + prompt * prompt_factor, completion
