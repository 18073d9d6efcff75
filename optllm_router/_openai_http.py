"""The HTTP library of the installed openai: httpx2 from openai 3 on, httpx before.

What reaches users as openai's (requests, responses, streams of bytes) is made of this one, whatever
carries our own requests. Imported with openai, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import openai

if TYPE_CHECKING:
    import httpx2 as http
else:
    _client = next(base for base in openai.DefaultHttpxClient.__mro__ if base.__name__ == "Client")
    http = importlib.import_module(_client.__module__.partition(".")[0])

__all__ = ["http"]
