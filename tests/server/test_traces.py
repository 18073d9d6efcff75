"""``opentelemetry-instrument -- optllm serve``: a collector hears of every request."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest
from running import RunningServer, write_config
from scripted_http import ScriptedProvider, listening
from simulated_entries import model_entries, through_httpx

pytest.importorskip("opentelemetry.instrumentation.auto_instrumentation")

INSTRUMENTED = (
    "-c",
    "from opentelemetry.instrumentation.auto_instrumentation import run; run()",
    "--",
    str(Path(sys.executable).with_name("optllm")),
)
TRACE = "0af7651916cd43dd8448eb211c80319c"


def collector(heard: list[bytes]) -> type[ScriptedProvider]:
    """Keeps what is exported to it."""

    class Collector(ScriptedProvider):
        def do_POST(self):
            heard.append(self.read())
            self.send_bytes(b"", kind="application/x-protobuf")

    return Collector


@pytest.mark.parametrize("workers", [1, 2])
def test_no_span_is_lost_at_a_stop(provider, tmp_path, workers):
    config = write_config(tmp_path, through_httpx(model_entries(provider.base_url)))
    heard: list[bytes] = []
    with listening(collector(heard)) as url:
        env = {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_BSP_SCHEDULE_DELAY": "60000",  # nothing is exported before the stop
        }
        options = ("--workers", str(workers))
        with RunningServer(config, *options, env=env, program=INSTRUMENTED) as running:
            response = httpx.post(
                f"{running.url}/v1/chat/completions",
                json={"model": "auto", "messages": [{"role": "user", "content": "What is 1 + 1?"}]},
                headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
                timeout=60,
            )
            assert response.status_code == 200
            assert heard == []
    spans = b"".join(heard)
    candidate = response.headers["x-optllm-candidate"]
    assert b"route auto" in spans
    assert f"chat {candidate}".encode() in spans
    assert spans.count(bytes.fromhex(TRACE)) == 2
