"""Spans of OpenTelemetry, by its semantic conventions for generative AI.

A program that traces has imported ``opentelemetry`` and set it up; in any other, nothing is
imported and nothing is done. A request has a span from its decision to its answer (of a stream,
to its first chunk), and within it one per attempt, which lasts to the last chunk. Prompts and
answers are in neither.
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
_OPERATIONS = {"chat": "chat", "embedding": "embeddings"}


@contextlib.contextmanager
def request_span(operation: str, model: str) -> Iterator[Span | None]:
    """The span of a request, current while the block lasts; ``None`` where nobody traces."""
    if "opentelemetry.trace" not in sys.modules:
        yield None
        return
    from opentelemetry import trace  # waits where a thread is still importing it

    name = _OPERATIONS[operation]
    attributes = {"gen_ai.operation.name": name, "gen_ai.request.model": model}
    # What an exception says may quote a prompt: its name is enough.
    with trace.get_tracer(_NAME).start_as_current_span(
        f"route {model}",
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            _tell_error(span, error)
            raise


def attempt_span(candidate: Candidate, call: Call) -> Span | None:
    """The span of one call to a provider, to be ended by :func:`end_attempt`."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    name = _OPERATIONS[call.operation]
    provider, _, model = candidate.model.rpartition("/")
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": name,
        "gen_ai.provider.name": provider or "unknown",
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
                "gen_ai.response.model": candidate.model.rpartition("/")[2],
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


def _tell_error(span: Span, error: BaseException) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", type(error).__name__)
    span.set_status(Status(StatusCode.ERROR))
