"""The log of the server: one line per decision, also of those without an answer."""

from __future__ import annotations

import httpx
import pytest
from running import RunningServer, until, write_config
from simulated_entries import model_entries, through_httpx

from optllm_router.server import Limits
from optllm_router.simulation import Faults, SimulationServer

BODY_PATH = "/v1/chat/completions"
BODY = {"model": "sim-tiny", "messages": [{"role": "user", "content": "my-private-words"}]}


@pytest.fixture
def provider():
    with SimulationServer() as running:
        yield running


def decisions(server: RunningServer, *ids: str) -> list[dict]:
    """The lines of the requests with these ids, or of the only one."""

    def found() -> list[dict]:
        lines = server.events("decision")
        return [line for line in lines if not ids or line["request_id"] in ids]

    until(lambda: len(found()) == max(len(ids), 1))
    return found()


def warm_up(server: RunningServer) -> None:
    """Ask until the server answers: its first call loads what others only use."""
    until(lambda: post(server, "warm").status_code == 200, seconds=60)


def post(server: RunningServer, id: str, timeout: float = 60, **fields) -> httpx.Response:
    headers = {"x-request-id": id}
    return httpx.post(
        server.url + BODY_PATH, json={**BODY, **fields}, headers=headers, timeout=timeout
    )


def test_what_fails_is_a_decision_and_a_refusal_of_one_request(provider, tmp_path):
    provider.faults = Faults(rates={"server_error": 1.0})
    config = write_config(tmp_path, through_httpx(model_entries(provider.base_url)), max_retries=1)
    with RunningServer(config) as server:
        url, headers = f"{server.url}/v1/chat/completions", {"x-request-id": "mine"}
        response = httpx.post(url, json=BODY, headers=headers, timeout=60)
        assert response.status_code == 500
        (line,), (refused,) = decisions(server), server.events("refused")
    assert line["request_id"] == refused["request_id"] == "mine"
    assert line["decision_id"]
    assert line["code"] == refused["code"] == "provider_unavailable"
    assert line["tried"] == ["sim-tiny", "sim-tiny"]
    assert (line["path"], line["key"], line["scope"]) == (BODY_PATH, "", "everything")
    assert "my-private-words" not in "".join(server.log)


def test_a_decision_that_no_budget_pays_for(provider, tmp_path):
    config = write_config(
        tmp_path, through_httpx(model_entries(provider.base_url)), budget="0.000000001 USD"
    )
    with RunningServer(config) as server:
        assert httpx.post(server.url + BODY_PATH, json=BODY, timeout=60).status_code == 429
        (line,) = decisions(server)
    assert (line["code"], line["tried"]) == ("insufficient_quota", [])


def test_requests_that_take_too_long(provider, tmp_path):
    config = write_config(tmp_path, through_httpx(model_entries(provider.base_url)))
    with RunningServer(config, limits=Limits(request_seconds=3)) as server:
        warm_up(server)
        provider.faults = Faults(rates={"timeout": 1.0})
        assert post(server, "whole").status_code == 504
        assert post(server, "stream", stream=True).status_code == 504
        lines = decisions(server, "whole", "stream")
    assert [(one["code"], one["tried"]) for one in lines] == [("request_timeout", ["sim-tiny"])] * 2


def test_clients_that_go_away(provider, tmp_path):
    config = write_config(tmp_path, through_httpx(model_entries(provider.base_url)))
    with RunningServer(config) as server:
        warm_up(server)
        provider.faults = Faults(rates={"stall": 1.0})
        for id, stream in (("whole", False), ("stream", True)):
            with pytest.raises(httpx.ReadTimeout):
                post(server, id, timeout=3, stream=stream)
        lines = decisions(server, "whole", "stream")
    told = [(one["code"], one["tried"], one["whole"]) for one in lines]
    assert told == [("client_gone", ["sim-tiny"], False)] * 2


def test_prompts_and_answers_are_there_where_they_are_asked_for(provider, tmp_path):
    config = write_config(tmp_path, through_httpx(model_entries(provider.base_url)))
    with RunningServer(config, "--log-prompts") as server:
        for id, stream in (("whole", False), ("stream", True)):
            assert post(server, id, stream=stream).status_code == 200
        lines = decisions(server, "whole", "stream")
    assert [one["request"] for one in lines] == [{**BODY, "stream": one} for one in (False, True)]
    assert all(one["answer"][0]["role"] == "assistant" for one in lines)
    assert all(one["answer"][0]["content"] for one in lines)


def test_a_stream_that_breaks(provider, tmp_path):
    provider.faults = Faults(rates={"cut": 1.0})
    config = write_config(tmp_path, through_httpx(model_entries(provider.base_url)))
    with RunningServer(config) as server:
        httpx.post(server.url + BODY_PATH, json={**BODY, "stream": True}, timeout=60)
        (line,) = decisions(server)
    assert (line["code"], line["tried"]) == ("provider_connection", ["sim-tiny"])
    assert line["request_id"].startswith("req_")
