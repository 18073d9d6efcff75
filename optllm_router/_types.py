"""The vocabulary: plain frozen values that the rooms hand to each other.

Amounts of money are integers in nano-dollars (``1 USD = 10**9``), see :mod:`._money`.
Arrays appear in annotations only: importing this module loads nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    BoolArray: TypeAlias = NDArray[np.bool_]
    FloatArray: TypeAlias = NDArray[np.float64]
    IntArray: TypeAlias = NDArray[np.int64]

Message: TypeAlias = "Mapping[str, Any]"
Messages: TypeAlias = "Sequence[Mapping[str, Any]]"


@dataclass(frozen=True)
class Prediction:
    """What a predictor says about n queries and k candidates.

    Attributes:
        p: shape (n, k), success probabilities in 0..1.
        std: shape (n, k), standard deviation of the uncertainty about ``p``, >= 0.
    """

    p: FloatArray
    std: FloatArray


@dataclass(frozen=True)
class Rates:
    """Nano-dollars per token of each kind, exact (150 is 0.15 USD per million tokens).

    Attributes:
        prompt: per prompt token that is of no other kind.
        completion: per completion token that is of no other kind.
        cached: per prompt token read from the provider's cache; ``None`` as ``prompt``.
        cache_write: per prompt token written to it; ``None`` as ``prompt``.
        audio: per prompt token of sound; ``None`` when unknown.
        reasoning: per completion token of hidden reasoning; ``None`` as ``completion``.
    """

    prompt: Decimal
    completion: Decimal
    cached: Decimal | None = field(default=None, kw_only=True)
    cache_write: Decimal | None = field(default=None, kw_only=True)
    audio: Decimal | None = field(default=None, kw_only=True)
    reasoning: Decimal | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Tier(Rates):
    """What all tokens of a call cost once its prompt is long.

    Attributes:
        above_tokens: holds for prompts of more tokens than this.
    """

    above_tokens: int


@dataclass(frozen=True)
class Price(Rates):
    """What a model charges.

    Attributes:
        source: the price table and its version, recorded with every amount.
        request: nano-dollars per call, whatever its tokens, exact.
        tiers: the rates for long prompts, in any order.
        batch: what the provider's batch API charges instead; ``None`` when unknown.
    """

    source: str
    request: Decimal = field(default=Decimal(0), kw_only=True)
    tiers: tuple[Tier, ...] = field(default=(), kw_only=True)
    batch: Price | None = field(default=None, kw_only=True)


Operation: TypeAlias = Literal["chat", "embedding"]

Capability: TypeAlias = Literal["vision", "audio", "tools", "json_schema", "streaming"]


@dataclass(frozen=True)
class RateLimits:
    """What a candidate may be asked for; ``None`` is no limit.

    Attributes:
        requests_per_minute: calls started in any minute.
        tokens_per_minute: tokens, prompt and completion, of the calls started in any minute.
        concurrent: calls under way at once.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


@dataclass(frozen=True)
class Candidate:
    """One way to answer a query: a model at a provider.

    Attributes:
        name: what the user calls it; unique within a router.
        model: litellm's name of it, with the provider (``openai/gpt-4o-mini``).
        price: what it charges.
        max_output_tokens: bound on the answer that is sent when the caller sets none.
        hidden_prompt_tokens: the most that the provider adds to a prompt and bills (templates,
            system prompts of its own).
        parameters: further litellm arguments (``api_base``, ``temperature``, ...); never printed
            either, as some are secrets (``aws_secret_access_key``, ``extra_headers``).
        api_key: passed to the provider and nowhere else; never printed or stored.
        operation: what it does; only chat candidates are chosen among.
        context_tokens: the most that prompt and answer may have together; ``None`` when unknown.
        unable: what it is known not to be able to do; all else is taken to work.
        tags: where and under which terms it runs (``region:eu``, ``no-training``), as configured.
        reasons: whether it may think before it answers, which is billed and need not be shown.
        limits: what it may be asked for.
        transport: how to reach it, ``litellm`` or ``httpx``.
        provider: who runs it, by litellm's name; empty where ``model`` says so.
        refuses: names of arguments of a call that it is known not to take.
        timeout_seconds: how long one attempt may take for a whole answer; ``None`` for as long as
            the call has time.
        first_token_seconds: how long one attempt may take for a stream's first token; ``None`` as
            above.
        longest_answer_tokens: the longest answer that may be asked for; ``None`` when unknown.
        group: the name that others of the list have, too, where it was taken before; a call that
            names it is for any of them.
    """

    name: str
    model: str
    price: Price
    max_output_tokens: int
    hidden_prompt_tokens: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)
    api_key: str | None = field(default=None, repr=False)
    operation: Operation = "chat"
    context_tokens: int | None = None
    unable: frozenset[Capability] = frozenset()
    tags: frozenset[str] = frozenset()
    reasons: bool = False
    limits: RateLimits = RateLimits()
    transport: str = "litellm"
    provider: str = ""
    refuses: frozenset[str] = frozenset()
    timeout_seconds: float | None = None
    first_token_seconds: float | None = None
    longest_answer_tokens: int | None = None
    group: str = ""

    @property
    def owner(self) -> str:
        """Who runs it, by litellm's name; empty when unknown."""
        prefix, slash, _ = self.model.partition("/")
        return self.provider or (prefix if slash else "")


@dataclass(frozen=True)
class Usage:
    """Tokens that one call consumed.

    Attributes:
        prompt_tokens: tokens of everything that was sent.
        completion_tokens: tokens that were generated, reasoning included.
        estimated: True when the provider sent no count and this is ours.
        cached_tokens: of the prompt tokens, those read from the provider's prompt cache.
        cache_write_tokens: of the prompt tokens, those written to it.
        reasoning_tokens: of the completion tokens, those of hidden reasoning.
        audio_tokens: of the prompt tokens, those of sound.
        reported_nano: what the provider itself said that it charges, in nano-dollars; 0 for an
            answer from a cache, which nobody was asked for.
        cut: True when it took all the completion tokens that it might: how long the answer would
            have been is not known.
    """

    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    reported_nano: int | None = None
    cut: bool = False

    @property
    def is_cached(self) -> bool:
        """Whether the answer is from a cache."""
        return self.reported_nano == 0

    def per_choice(self, choices: int) -> Usage:
        """As it would be with one choice of several: forecasts are of one answer."""
        if choices == 1:
            return self
        return replace(
            self,
            completion_tokens=round(self.completion_tokens / choices),
            reasoning_tokens=round(self.reasoning_tokens / choices),
        )


@dataclass(frozen=True)
class Call:
    """One chat completion, or embedding, to ask for.

    Attributes:
        messages: the conversation, as OpenAI's API takes it; for an embedding, one message
            per text.
        parameters: further arguments of the API (``temperature``, ``tools``, ...).
        max_output_tokens: bound on each choice, where the caller set one.
        choices: how many answers are asked for.
        timeout_seconds: how long the answer may take, all candidates and retries together.
        prompt_bytes: size of the messages, tools and schemas.
        most_prompt_tokens: upper bound on their tokens.
        most_audio_tokens: upper bound on those of them that are of sound.
        operation: what is asked for.
        needs: what a candidate must be able to do.
        required_tags: what a candidate's tags must include.
        forbidden_tags: what they must not include.
        max_retries: how often a candidate is asked again after a fault that cost nothing;
            ``None`` for the client's setting.
        scopes: what it belongs to, and so who may see its answer.
        first_token_seconds: of a stream, how long its first token may take; ``None`` for as long
            as the whole.
    """

    messages: Messages
    parameters: Mapping[str, Any] = field(default_factory=dict)
    max_output_tokens: int | None = None
    choices: int = 1
    timeout_seconds: float = 600.0
    prompt_bytes: int = 0
    most_prompt_tokens: int = 0
    most_audio_tokens: int = 0
    operation: Operation = "chat"
    needs: frozenset[Capability] = frozenset()
    required_tags: frozenset[str] = frozenset()
    forbidden_tags: frozenset[str] = frozenset()
    max_retries: int | None = None
    scopes: tuple[str, ...] = ()
    first_token_seconds: float | None = None


@dataclass(frozen=True)
class Completion:
    """A provider's whole answer.

    Attributes:
        body: an OpenAI chat completion (or list of embeddings), as JSON values.
        usage: what the provider counted; ``None`` when it did not say.
    """

    body: Mapping[str, Any]
    usage: Usage | None


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer.

    Attributes:
        body: an OpenAI chat completion chunk, as JSON values.
        usage: what the provider counted for the whole answer, with the chunk that says so.
    """

    body: Mapping[str, Any]
    usage: Usage | None = None


class Figures(NamedTuple):
    """What is predicted of one candidate for one query.

    Attributes:
        p: success probability, 0..1.
        std: uncertainty of ``p``.
        expected_cost_nano: cost in nano-dollars.
    """

    p: float
    std: float
    expected_cost_nano: int


@dataclass(frozen=True)
class Decision:
    """Which candidate was chosen for a query, and why.

    Attributes:
        id: identifies the request, its outcome and its feedback.
        candidate: name of the chosen candidate.
        fallbacks: names of the candidates to try next, best first.
        p: predicted success probability of the chosen candidate, 0..1.
        std: uncertainty of ``p``.
        expected_cost_nano: predicted cost in nano-dollars.
        propensity: probability with which the policy chose this candidate, in (0, 1].
        price: the shadow price used, in expected successes per USD; 0 when money is no object.
        reason: one sentence for people.
        left_out: names of the candidates that cannot serve the call, each with the reason.
        foreseen: tells the figures of a fallback by its name; ``None`` where nothing was foreseen
            of them.
    """

    id: str
    candidate: str
    fallbacks: tuple[str, ...]
    p: float
    std: float
    expected_cost_nano: int
    propensity: float
    price: float
    reason: str
    left_out: Mapping[str, str] = field(default_factory=dict)
    foreseen: Callable[[str], Figures] | None = field(default=None, repr=False, compare=False)

    def turned_to(self, fallback: str, why: str) -> Decision:
        """This decision as a fallback carries it out: with its figures, and why it was its turn.

        ``propensity`` and ``price`` stay those of the policy's choice.
        """
        own = Figures(self.p, self.std, self.expected_cost_nano)
        figures = self.foreseen(fallback) if self.foreseen else own
        reason = f"{why}; next best: {self.reason}"
        return replace(self, candidate=fallback, reason=reason, **figures._asdict())


OutcomeStatus: TypeAlias = Literal["ok", "error"]


@dataclass(frozen=True)
class Outcome:
    """What happened when a decision was sent to one candidate.

    Attributes:
        decision_id: the decision this belongs to.
        candidate: who was asked (a fallback has its own outcome).
        status: ``ok`` or ``error``.
        usage: tokens, where known.
        cost_nano: what was settled, in nano-dollars; 0 when the call was not billed.
        latency_seconds: from sending to the whole answer.
        error: class name of the error, empty when there was none.
        first_token_seconds: from sending to the first token, of a stream that came to one.
    """

    decision_id: str
    candidate: str
    status: OutcomeStatus
    usage: Usage | None
    cost_nano: int
    latency_seconds: float
    error: str = ""
    first_token_seconds: float | None = None


class Transport(Protocol):
    """Sends calls to providers; every failure leaves as a ``ProviderError``."""

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Raise ``ConfigurationError`` when a candidate cannot be called, as without a key."""
        ...

    def send(self, candidate: Candidate, call: Call) -> Completion:
        """Ask a candidate and wait for its whole answer."""
        ...

    async def asend(self, candidate: Candidate, call: Call) -> Completion:
        """As :meth:`send`, without blocking the event loop."""
        ...

    def stream(self, candidate: Candidate, call: Call) -> Generator[Chunk, None, None]:
        """Ask a candidate and hand on its chunks as they come.

        The call is sent when the first chunk is asked for. The provider is always asked for
        usage. ``close()`` of the generator closes the connection.
        """
        ...

    def astream(self, candidate: Candidate, call: Call) -> AsyncGenerator[Chunk, None]:
        """As :meth:`stream`, without blocking the event loop; ``aclose()`` ends it."""
        ...

    def close(self) -> None:
        """Close the connections that are kept, when nothing is under way."""
        ...


class Predictor(Protocol):
    """Predicts which candidate answers which text correctly.

    Scores are shape (n, k) in 0..1 with NaN where a pair was never graded.
    """

    def fit(self, texts: Sequence[str], scores: FloatArray) -> Predictor:
        """Learn from graded texts; returns self."""
        ...

    def predict(self, texts: Sequence[str]) -> Prediction:
        """Predict for n texts; never NaN, whatever the texts."""
        ...

    def learn_one(
        self, text: str, candidate: int, score: float, replaces: float | None = None
    ) -> None:
        """Let one new score (0..1) change the next predictions at once.

        ``replaces`` is the score that the same answer was given before, which no longer counts.
        """
        ...
