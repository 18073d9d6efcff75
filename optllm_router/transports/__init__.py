"""Ways to reach providers; each maps its library's errors to ours in one place."""

from optllm_router.transports._answer_stores import CacheSettings, LocalStore
from optllm_router.transports._bodies import reasoning_in, texts_in
from optllm_router.transports._counting import count_usage
from optllm_router.transports._refusals import refused_arguments
from optllm_router.transports.caching import CachingTransport
from optllm_router.transports.dispatching import DispatchingTransport, all_transports
from optllm_router.transports.httpx import HttpxTransport
from optllm_router.transports.litellm import LiteLLMTransport, keys_in_sight
from optllm_router.transports.traced import TracedTransport

__all__ = [
    "CacheSettings",
    "CachingTransport",
    "DispatchingTransport",
    "HttpxTransport",
    "LiteLLMTransport",
    "LocalStore",
    "TracedTransport",
    "all_transports",
    "count_usage",
    "keys_in_sight",
    "reasoning_in",
    "refused_arguments",
    "texts_in",
]
