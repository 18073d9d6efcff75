"""The client behind HTTP: an OpenAI-compatible server.

Importing it loads no web framework: that is :mod:`.serving`'s, which ``optllm serve`` loads.
"""

from optllm_router.server.options import Limits, ServerOptions, load_limits

__all__ = ["Limits", "ServerOptions", "load_limits"]
