"""Ways to reach providers; each maps its library's errors to ours in one place."""

from optllm_router.transports._counting import count_usage
from optllm_router.transports.litellm import LiteLLMTransport, keys_in_sight
from optllm_router.transports.retrying import RetryingTransport

__all__ = ["LiteLLMTransport", "RetryingTransport", "count_usage", "keys_in_sight"]
