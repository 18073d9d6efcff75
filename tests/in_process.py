"""A provider in this process, for tests of what a client does around it."""

from __future__ import annotations

from optllm_router._types import Call, Candidate, Completion, Usage


class InProcess:
    """Answers every call with a word; what that consumed is for a test to say."""

    def check(self, candidates) -> None:
        pass

    def close(self) -> None:
        pass

    def consumed(self, candidate: Candidate, call: Call) -> Usage:
        raise NotImplementedError

    def send(self, candidate: Candidate, call: Call) -> Completion:
        usage = self.consumed(candidate, call)
        message = {"role": "assistant", "content": "Yes."}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return Completion({"choices": [choice]}, usage)
