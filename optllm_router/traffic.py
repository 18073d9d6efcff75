"""Requests that arrive one by one, decided with those to come in mind.

Recent queries stand for those still to come. A budget is shared with them: what is left,
divided by how many are expected until its window ends, is what a query may cost on average, and
the point of the recent queries' front that costs as much sets the shadow price. The division is
done anew for every decision, so that the price follows the true costs and the true traffic
(re-solving; Agrawal, Wang & Ye, Operations Research 62(4), 2014; Jasin & Kumar 2012).

Over a rolling window money comes back as it goes: a query may cost what the limit divided by the
queries of a whole window is, and less while almost nothing is left.

Where no end is known, nobody can tell how many queries are to come. The first half of such a budget
is spent freely. From then on a query may cost the less on average the less is left, geometrically
from the dearest point of the front to the cheapest, so that a budget too small for the best answers
to all queries still answers most of them. Thresholds that rise with the part that is used are the
best that an online knapsack can do (Zhou, Chakrabarty & Lukose, WINE 2008); the free half is for
budgets that are not too small: where half the money would do, nothing is lost.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np

from optllm_router.arrivals import Arrivals
from optllm_router.policy import Choice, Forecast, Outlook, Policy, follow

_SAMPLE = 256
"""How many recent queries stand for those still to come."""
_RENEWED = 16
"""The front is computed anew once a sixteenth of the sample is new."""
_SHARE_INERTIA = 16.0
"""Queries that a budget's earlier share of the traffic counts for in its present window."""
_HEADROOM = 0.05
"""Of a rolling window's limit: below that, the less is left, the less a query may cost."""
_FREE_SHARE = 0.5
"""Of a budget without an end that is spent freely."""
_MOST_THRIFT = 1e-4
"""The cheapest point counts as this part of the dearest, where it costs less."""
_MOST_POTS, _MOST_POLICIES = 10_000, 32


@dataclass(frozen=True)
class Pot:
    """What one budget leaves.

    Attributes:
        left_usd: what may still be spent.
        start: when its window began, Unix seconds.
        end: when the next one begins; ``None`` for a window without end, and a rolling one.
        seen: calls that it paid for in this window.
        paced: whether the money should last until the window ends.
        rolling: whether the window ends now, whenever that is.
        limit_usd: its cap, which says how much is gone; ``None`` where that is no matter.
        name: of the budget.
    """

    left_usd: float
    start: float = 0.0
    end: float | None = None
    seen: int = 0
    paced: bool = True
    rolling: bool = False
    limit_usd: float | None = None
    name: str = "default"


@dataclass(frozen=True)
class Means:
    """What there is to spend: the least of what several budgets leave.

    Attributes:
        pots: one for each budget that pays; without any, money is no object.
        now: Unix seconds.
        share: of what is left, 0..1, for the queries to be decided; the rest is for others that
            are decided apart at this moment.
    """

    pots: tuple[Pot, ...] = ()
    now: float = 0.0
    share: float = 1.0

    @property
    def left_usd(self) -> float:
        """What may be spent on the queries to be decided; infinity without a budget."""
        return self.share * min((pot.left_usd for pot in self.pots), default=math.inf)

    def part(self, share: float) -> Means:
        """The same for a share, 0..1, of the queries that are decided at this moment."""
        return replace(self, share=self.share * share)


class Traffic:
    """Recent queries and how many come; not thread-safe.

    Args:
        candidates: how many there are, k.
        expected_queries: queries expected per window of every budget; ``None`` to go by those
            that came.
    """

    def __init__(self, candidates: int, expected_queries: int | None = None) -> None:
        self.arrivals = Arrivals()
        self._expected_queries = expected_queries
        self._sample = np.empty((3, _SAMPLE, candidates))
        self._decided = 0
        self._outlooks: OrderedDict[Policy, tuple[int, Outlook]] = OrderedDict()
        self._shares: OrderedDict[str, _Share] = OrderedDict()

    def choose(self, policy: Policy, batch: Forecast, means: Means) -> Choice:
        """Decide for n queries that arrived together."""
        self.arrivals.add(means.now, len(batch))
        self._remember(batch)
        outlook, held = self._outlook(policy), min(self._decided, _SAMPLE)
        usd = min(self.allowance(means, len(batch)), self._thrift(means, len(batch), outlook, held))
        return follow(outlook, batch, usd=usd * held, left_usd=means.left_usd)

    def allowance(self, means: Means, queries: int) -> float:
        """USD that a query may cost on average, for all budgets to last.

        Args:
            means: what there is to spend.
            queries: how many are to be decided now; they are among those expected.
        """
        return min((self._of_one(pot, means.now, queries) for pot in means.pots), default=math.inf)

    def _of_one(self, pot: Pot, now: float, queries: int) -> float:
        """As :meth:`allowance`, for one budget."""
        expected = self._still_expected(pot, now, queries)
        if not expected:
            return math.inf
        if not pot.rolling:
            return pot.left_usd / expected
        limit = pot.limit_usd or pot.left_usd
        return min(limit, pot.left_usd / _HEADROOM) / expected

    def _thrift(self, means: Means, queries: int, outlook: Outlook, held: int) -> float:
        """As :meth:`allowance`, by the budgets of which nobody knows for how long they must last.

        Args:
            means: what there is to spend.
            queries: how many are to be decided now.
            outlook: on the recent queries.
            held: how many these are.
        """
        endless = [pot for pot in means.pots if pot.paced and pot.end is None and not pot.rolling]
        if not endless or self._expected_queries is not None:
            return math.inf
        least, most = outlook.costs
        at_once = queries / means.share
        return min(_thrifty_usd(pot, at_once, least / held, most / held) for pot in endless)

    def _still_expected(self, pot: Pot, now: float, queries: int) -> float:
        """How many queries a budget has to pay for yet, one over a rolling window in each; 0 where
        nobody wants it to last, or knows for how long."""
        if self._expected_queries is not None:
            seen = 0 if pot.rolling else pot.seen
            return max(self._expected_queries - seen, queries)
        end = now + (now - pot.start) if pot.rolling else pot.end
        if end is None or not pot.paced:
            return 0.0
        return queries + self._share(pot, now) * self.arrivals.expected(now, end)

    def _share(self, pot: Pot, now: float) -> float:
        """Calls that a budget pays for, per query that is expected in all.

        Learnt in its window so far, starting from what it was in the one before.
        """
        kept = self._shares.pop(pot.name, None) or _Share(pot.start)
        if kept.start != pot.start:
            kept = _Share(pot.start, kept.latest, kept.latest)
        first = self.arrivals.first
        watched_from = pot.start if first is None else max(pot.start, first)
        watched = self.arrivals.expected(watched_from, now) + _SHARE_INERTIA
        kept.latest = (pot.seen + _SHARE_INERTIA * kept.before) / watched
        self._shares[pot.name] = kept
        if len(self._shares) > _MOST_POTS:
            self._shares.popitem(last=False)
        return kept.latest

    def _remember(self, batch: Forecast) -> None:
        """The newest queries take the places of the oldest."""
        for i in range(len(batch))[-_SAMPLE:]:
            place = (self._decided + i) % _SAMPLE
            self._sample[:, place] = batch.p[i], batch.std[i], batch.cost[i]
        self._decided += len(batch)

    def _outlook(self, policy: Policy) -> Outlook:
        """What the policy makes of the recent queries; of almost the same ones, if it is known."""
        held = min(self._decided, _SAMPLE)
        known = self._outlooks.pop(policy, None)
        if known is None or self._decided - known[0] >= max(held // _RENEWED, 1):
            known = (self._decided, policy.look(Forecast(*self._sample[:, :held].copy())))
        self._outlooks[policy] = known
        if len(self._outlooks) > _MOST_POLICIES:
            self._outlooks.popitem(last=False)
        return known[1]


@dataclass
class _Share:
    """A budget's share of the traffic: in its window before, and in this one so far."""

    start: float
    before: float = 1.0
    latest: float = 1.0


def _thrifty_usd(pot: Pot, queries: float, least: float, most: float) -> float:
    """What each of n queries may cost on average, if each is to be as thrifty as one by one.

    Args:
        pot: a budget that has no end.
        queries: n, which are decided at once.
        least: mean USD of a recent query at the cheapest point of their front.
        most: the same at the dearest point.
    """
    thrifty = (pot.limit_usd or 0.0) * (1.0 - _FREE_SHARE)
    free = pot.left_usd - thrifty
    least = max(least, _MOST_THRIFT * most)
    if thrifty == 0.0 or least == most or queries * most <= free:
        return math.inf
    freely = max(0.0, free)
    steepness = math.log(most / least)
    first = most * math.exp(-steepness * (1.0 - min(1.0, pot.left_usd / thrifty)))
    thriftily = queries - freely / most
    spent = thrifty / steepness * math.log1p(thriftily * first * steepness / thrifty)
    return (freely + spent) / queries
