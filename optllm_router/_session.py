"""What a client's resources share: the runtime, and what is set for all their calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optllm_router._chat import Prepared, prepare
from optllm_router._options import Options
from optllm_router._runtime import Runtime
from optllm_router.config import Settings


@dataclass(frozen=True)
class Session:
    """One runtime with the options of one client; copies of a client share the runtime.

    Attributes:
        settings: how the client was set up.
        runtime: decides, pays, sends and learns.
        options: hold for every call.
    """

    settings: Settings
    runtime: Runtime
    options: Options = field(default_factory=Options)

    def prepare(self, messages: Any, model: Any, arguments: Mapping[str, Any]) -> Prepared:
        """Check a chat completion's arguments.

        Raises:
            InvalidRequestError: an argument is wrong.
            UnknownModelError: no candidate has the name ``model``.
        """
        timeout = self.settings.timeout_seconds
        prepared = prepare(messages, model, arguments, self.options, timeout)
        if prepared.model != "auto":
            self.runtime.router.index(prepared.model)
        return prepared
