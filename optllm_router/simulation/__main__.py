"""Run the simulation in the foreground: ``python -m optllm_router.simulation --port 8000``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading

from optllm_router.simulation import SimulationServer


def main() -> None:
    """Serve all simulated models until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m optllm_router.simulation",
        description="An OpenAI-compatible server of simulated models; no real model is involved.",
    )
    parser.add_argument("--port", type=int, default=8000, help="0 lets the system choose")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    arguments = parser.parse_args()
    server = SimulationServer(latency_seconds=arguments.latency, port=arguments.port)
    try:
        server.start()
    except OSError as error:
        parser.exit(2, f"cannot listen on port {arguments.port}: {error.strerror}\n")
    sys.stdout.write(f"{server.base_url} serves {', '.join(server.names)} (Ctrl+C stops)\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    server.stop()


if __name__ == "__main__":
    main()
