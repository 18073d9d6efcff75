"""``optllm serve`` with limits that it has no options for: ``limited_server.py CONFIG LIMITS``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from optllm_router.server import Limits, ServerOptions
from optllm_router.server.serving import serve

if __name__ == "__main__":
    options = ServerOptions(
        config=Path(sys.argv[1]), port=0, limits=Limits(**json.loads(sys.argv[2]))
    )
    serve(options, listening=lambda url: click.echo(f"listening on {url}", err=True))
