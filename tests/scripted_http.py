"""Providers over real HTTP that a test writes in a few lines; the simulation is the richer one."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMPLETION = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "42"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}


class ScriptedProvider(BaseHTTPRequestHandler):
    """Say in ``do_POST`` what it answers."""

    def read(self) -> bytes:
        """What was sent."""
        return self.rfile.read(int(self.headers["content-length"]))

    def send(self, body: Any, status: int = 200) -> None:
        """Answer with this, as JSON."""
        self.send_bytes(json.dumps(body).encode(), status)

    def send_bytes(self, content: bytes, status: int = 200, kind: str = "application/json") -> None:
        """Answer with this as it stands."""
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def listening(provider: type[ScriptedProvider]) -> Iterator[str]:
    """The URL of a provider's host, for as long as the block lasts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), provider) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
