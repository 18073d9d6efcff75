"""Between OpenAI's chat API and ours."""

from __future__ import annotations

import pytest
from openai.types.chat import ChatCompletion

from optllm_router._chat import as_openai

BODIES = {
    "plain": {"id": "1", "object": "chat.completion", "created": 1, "model": "m"},
    "reasoning": {"message": {"role": "assistant", "content": "", "reasoning_content": "Hm."}},
    "tools": {
        "message": {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "b", "type": "custom", "custom": {"name": "g", "input": "x"}},
            ],
        }
    },
    "unknown reason": {"finish_reason": "eos"},
    "no reason": {"finish_reason": None},
    "numbers as text": {"created": "1", "index": "0"},
    "numbers with a point": {"created": 1.5},
    "no index": {"index": None},
    "untyped tool": {"message": {"role": "assistant", "tool_calls": [{"id": "a"}]}},
    "extras": {"provider": "Ours", "citations": [{"url": "u"}], "usage": {"cost": 0.1}},
}


@pytest.mark.parametrize("name", BODIES)
def test_an_answer_is_what_openai_makes_of_it(name):
    changed = BODIES[name]
    message = {"role": "assistant", "content": "Hi", "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    choice |= {key: value for key, value in changed.items() if key in choice}
    beside = {key: value for key, value in changed.items() if key not in choice}
    body = {**BODIES["plain"], "choices": [choice], **beside}
    ours, openais = as_openai(ChatCompletion, body), ChatCompletion.model_construct(**body)
    assert ours == openais
    assert ours.model_fields_set == openais.model_fields_set
    assert ours.model_dump_json(warnings=False) == openais.model_dump_json(warnings=False)
    assert type(ours.choices[0].message) is type(openais.choices[0].message)
