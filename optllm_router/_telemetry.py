"""Spans of OpenTelemetry, by its semantic conventions for generative AI.

A program that traces has imported ``opentelemetry`` and set it up; in any other, nothing is
imported and nothing is done. A request has a span from its decision until its answer is whole and
paid for, and within it one per attempt. Prompts and answers are in neither.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from optllm_router._types import Call, Candidate, Decision, Usage

    Attributes: TypeAlias = Mapping[str, str | int | float | bool | Sequence[str]]

_NAME = "optllm_router"
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""The conventions' names of those that litellm calls otherwise."""
_OPERATIONS = {"chat": "chat", "embedding": "embeddings"}
_NUMBERS = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")
"""Arguments of a call that are told; all others may hold what somebody wrote."""
_FINER_COUNTS = {
    "cache_read.input_tokens": "cached_tokens",
    "cache_creation.input_tokens": "cache_write_tokens",
    "reasoning.output_tokens": "reasoning_tokens",
}
"""The conventions' names of tokens that our usage counts apart."""


@contextlib.contextmanager
def request_span(operation: str, model: str, *, stays: bool = False) -> Iterator[Span | None]:
    """The span of a request, current while the block lasts; ``None`` where nobody traces.

    Args:
        operation: what is asked for.
        model: what the caller named.
        stays: whether it goes on after the block, until :func:`end_request`.
    """
    if "opentelemetry.trace" not in sys.modules:
        yield None
        return
    from opentelemetry import trace  # waits where a thread is still importing it

    name = _OPERATIONS[operation]
    attributes = {"gen_ai.operation.name": name, "gen_ai.request.model": model}
    span = trace.get_tracer(_NAME).start_span(f"route {model}", attributes=attributes)
    try:
        # What an exception says may quote a prompt: its name is enough.
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield span
    except BaseException as error:
        end_request(span, error)
        raise
    if not stays:
        end_request(span)


def end_request(span: Span | None, error: BaseException | None = None) -> None:
    """End a request's span, unless that is done."""
    if span is not None and span.is_recording():
        if error is not None:
            _tell_error(span, error)
        span.end()


def attempt_span(
    candidate: Candidate,
    call: Call,
    server_of: Callable[[Candidate], tuple[str, int] | None] = lambda _: None,
    *,
    streamed: bool = False,
) -> Span | None:
    """The span of one call to a provider, to be ended by :func:`end_attempt`.

    Args:
        candidate: who is asked.
        call: for what.
        server_of: finds out the host and port where, if that is known.
        streamed: whether the answer is to come as it is made.
    """
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    name, model = _OPERATIONS[call.operation], _model(candidate)
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": name,
        "gen_ai.provider.name": _provider(candidate),
        "gen_ai.request.model": model,
        "optllm.candidate": candidate.name,
        **_asked(candidate, call, streamed),
    }
    if server := server_of(candidate):
        attributes["server.address"], attributes["server.port"] = server
    span: Span = trace.get_tracer(_NAME).start_span(
        f"{name} {model}", kind=trace.SpanKind.CLIENT, attributes=attributes
    )
    return span


def _asked(candidate: Candidate, call: Call, streamed: bool) -> Attributes:
    """What is asked for, in numbers; a setting that is the default is not told."""
    told: dict[str, int | float | bool] = {}
    for name in _NUMBERS:
        value = call.parameters.get(name, candidate.parameters.get(name))
        if isinstance(value, (int, float)):
            told[name] = value
    if call.max_output_tokens is not None:
        told["max_tokens"] = call.max_output_tokens
    if call.choices != 1:
        told["choice.count"] = call.choices
    if streamed:
        told["stream"] = True
    return {f"gen_ai.request.{name}": value for name, value in told.items()}


def end_attempt(
    span: Span | None,
    body: Mapping[str, Any] | None = None,
    usage: Usage | None = None,
    error: BaseException | None = None,
) -> None:
    """Tell what an attempt came to, without a word of it, and end its span.

    Args:
        span: of the attempt.
        body: the answer; of a stream what its chunks said beside the answer's own words.
        usage: what the provider counted.
        error: why there is no answer.
    """
    if span is None:
        return
    span.set_attributes(_answered(body or {}))
    if usage is not None:
        span.set_attributes(_counted(usage))
    if error is not None:
        _tell_error(span, error)
    span.end()


def _answered(body: Mapping[str, Any]) -> Attributes:
    told: dict[str, str | Sequence[str]] = {}
    for name in ("model", "id"):
        if isinstance(body.get(name), str):
            told[name] = body[name]
    if reasons := [reason for _, reason in finish_reasons(body)]:
        told["finish_reasons"] = reasons
    return {f"gen_ai.response.{name}": value for name, value in told.items()}


def finish_reasons(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Why choices ended, each with its index as text, in the order of an answer or chunk.

    Of any JSON: what is no choice, or does not say why it ended in words, is passed over.
    """
    choices = body.get("choices")
    for choice in choices if isinstance(choices, Sequence) else ():
        if isinstance(choice, Mapping):
            reason = choice.get("finish_reason")
            if isinstance(reason, str) and reason:
                yield str(choice.get("index") or 0), reason


def _counted(usage: Usage) -> Attributes:
    told = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
    for name, ours in _FINER_COUNTS.items():
        if count := getattr(usage, ours):
            told[name] = count
    return {f"gen_ai.usage.{name}": count for name, count in told.items()}


def tell_decision(span: Span | None, decision: Decision) -> None:
    """Put on a request's span who was chosen, and why."""
    if span is not None:
        span.set_attributes(
            {
                "optllm.decision_id": decision.id,
                "optllm.candidate": decision.candidate,
                "optllm.p": decision.p,
                "optllm.propensity": decision.propensity,
                "optllm.expected_cost_nano": decision.expected_cost_nano,
                "optllm.reason": decision.reason,
            }
        )


def tell_cost(span: Span | None, candidate: Candidate, usage: Usage, cost_nano: int) -> None:
    """Put on a request's span who answered, and what it took."""
    if span is not None:
        span.set_attributes(
            {
                "gen_ai.response.model": _model(candidate),
                **_counted(usage),
                "optllm.answered_by": candidate.name,
                "optllm.cost_nano": cost_nano,
            }
        )


@contextlib.contextmanager
def continued(headers: Mapping[str, str]) -> Iterator[None]:
    """Spans in the block belong to the trace that a caller's headers name, if they name one."""
    if "opentelemetry.trace" not in sys.modules:
        yield
        return
    from opentelemetry import context, propagate

    token = context.attach(propagate.extract(headers))
    try:
        yield
    finally:
        context.detach(token)


def export_what_waits() -> None:
    """Have the spans exported that wait for their batch; blocks for as long as that takes.

    Where nobody collects them that is the exporter's time limit, OTLP's 10 seconds by default.

    For the end of a process that ends without Python's farewell, where they are exported else.
    """
    if "opentelemetry.sdk.trace" not in sys.modules:
        return
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.force_flush()


def _model(candidate: Candidate) -> str:
    """What its provider calls it."""
    provider, _, model = candidate.model.partition("/")
    return model or provider


def _provider(candidate: Candidate) -> str:
    owner = "vertex_ai" if candidate.owner.startswith("vertex_ai-") else candidate.owner
    return _PROVIDERS.get(owner, owner) or "unknown"


def _tell_error(span: Span, error: BaseException) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", type(error).__name__)
    span.set_status(Status(StatusCode.ERROR))
