"""Spans of OpenTelemetry, by its semantic conventions for generative AI.

A program that traces has imported ``opentelemetry`` and set it up; in any other, nothing is
imported and nothing is done. A request has a span from its decision until its answer is whole and
paid for, and within it one per attempt. Prompts and answers are in neither.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from optllm_router._types import Call, Candidate, Decision, Usage

    Attributes: TypeAlias = Mapping[str, str | int | float | bool]

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


def attempt_span(candidate: Candidate, call: Call) -> Span | None:
    """The span of one call to a provider, to be ended by :func:`end_attempt`."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    name = _OPERATIONS[call.operation]
    model = _model(candidate)
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": name,
        "gen_ai.provider.name": _provider(candidate),
        "gen_ai.request.model": model,
        "optllm.candidate": candidate.name,
    }
    if call.operation == "chat":
        attributes["gen_ai.request.choice.count"] = call.choices
        attributes["gen_ai.request.max_tokens"] = call.max_output_tokens or 0
    span: Span = trace.get_tracer(_NAME).start_span(
        f"{name} {model}", kind=trace.SpanKind.CLIENT, attributes=attributes
    )
    return span


def end_attempt(
    span: Span | None,
    body: Mapping[str, Any] | None = None,
    usage: Usage | None = None,
    error: BaseException | None = None,
) -> None:
    """Tell what an attempt came to, without a word of it, and end its span."""
    if span is None:
        return
    for name, key in (("model", "model"), ("id", "id")):
        if body is not None and isinstance(body.get(key), str):
            span.set_attribute(f"gen_ai.response.{name}", body[key])
    if usage is not None:
        span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
    if error is not None:
        _tell_error(span, error)
    span.end()


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
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
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
