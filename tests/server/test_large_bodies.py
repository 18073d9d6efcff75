"""Large bodies: read once, and where they hold up nobody."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import pytest
from simulated_entries import model_entries, through_httpx

from optllm_router import AsyncOptLLM
from optllm_router._session import Session
from optllm_router._wire import LARGE_BYTES
from optllm_router.server import ServerOptions
from optllm_router.server.app import make_app


@pytest.mark.parametrize(
    ("path", "field"), [("chat/completions", "messages"), ("responses", "input")]
)
@pytest.mark.parametrize("large", [True, False])
def test_a_body_is_read_once_and_a_large_one_in_a_thread(
    provider, sqlite_url, monkeypatch, path, field, large
):
    entries = through_httpx(model_entries(provider.base_url))
    text = "word " * (LARGE_BYTES // 5 if large else 1)
    body = json.dumps({"model": "auto", field: [{"role": "user", "content": text}]}).encode()
    places: list[tuple[str, bool]] = []

    def note(what: str) -> None:
        places.append((what, threading.current_thread() is threading.main_thread()))

    loads, prepare = json.loads, Session.prepare

    def noted_loads(data, **options):
        if data == body:
            note("read")
        return loads(data, **options)

    def noted_prepare(self, *arguments):
        note("checked")
        return prepare(self, *arguments)

    async def ask() -> int:
        app = make_app(AsyncOptLLM(entries, store=sqlite_url), ServerOptions())
        headers = {"content-type": "application/json"}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            response = await client.post(f"/v1/{path}", content=body, headers=headers, timeout=60)
        return response.status_code

    monkeypatch.setattr(json, "loads", noted_loads)
    monkeypatch.setattr(Session, "prepare", noted_prepare)
    assert asyncio.run(ask()) == 200
    assert places == [("read", not large), ("checked", not large)]
