"""Ways to reach providers; each maps its library's errors to ours in one place."""

from optllm_router.transports.litellm import LiteLLMTransport, keys_in_sight
from optllm_router.transports.retrying import RetryingTransport

__all__ = ["LiteLLMTransport", "RetryingTransport", "keys_in_sight"]
