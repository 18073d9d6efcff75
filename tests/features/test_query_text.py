from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optllm_router.features import query_text


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def test_a_first_question_stands_as_it_is():
    assert query_text([user("  What is 2 + 2?\n")]) == "  What is 2 + 2?\n"


def test_a_follow_up_keeps_earlier_user_text_but_no_answers():
    text = query_text([user("Translate 'cat'."), assistant("Katze"), user("And 'dog'?")])
    assert text.startswith("And 'dog'?")
    assert "Translate 'cat'." in text
    assert "Katze" not in text


def test_long_history_is_bounded_and_keeps_its_end():
    text = query_text([user("a" * 10_000 + " the end"), user("go on")])
    assert "the end" in text
    assert len(text) < 2_000


def test_system_prompt_is_named_by_its_opening():
    system = {"role": "system", "content": "You are a SQL tutor. " + "Be kind. " * 500}
    text = query_text([system, user("Join two tables")])
    assert text.startswith("Join two tables")
    assert "You are a SQL tutor." in text
    assert len(text) < 300


def test_tools_and_images_show_in_the_shape_only():
    messages = [
        user(
            [
                {"type": "text", "text": "What is on the picture?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ]
        ),
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "x" * 1000},
    ]
    text = query_text(messages)
    assert text.splitlines() == ["What is on the picture?", "[tools]", "[image_url]"]


@pytest.mark.parametrize("content", [None, [], [{"type": "text"}], [{"text": None}], 7, [3]])
def test_content_without_text_is_empty(content):
    assert query_text([user(content)]).partition("\n")[0] == ""


def test_no_messages():
    assert query_text([]) == ""


contents = st.one_of(
    st.none(),
    st.text(),
    st.lists(st.dictionaries(st.sampled_from(["type", "text"]), st.text() | st.none())),
)
conversations = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"])},
        optional={"content": contents},
    )
)


@given(conversations)
def test_any_conversation_has_a_text(messages):
    assert isinstance(query_text(messages), str)


def test_a_follow_up_of_a_few_words_is_asked_in_the_earlier_turns():
    task = "Rewrite the scheduler without locks. " + "It has to keep the order. " * 40
    for last, kept in (("commit it", 1_600), ("Now do the same for the queue, please. " * 3, 400)):
        text = query_text(
            [
                {"role": "user", "content": task},
                {"role": "assistant", "content": "Done."},
                {"role": "user", "content": last},
            ]
        )
        earlier = text.partition("[earlier] ")[2]
        assert earlier == task[-kept:]
        assert text.startswith(last)
