"""Text to numeric features: offline, deterministic, well under a millisecond per query."""

from optllm_router.features._featurizer import TextFeaturizer
from optllm_router.features._text import query_text

__all__ = ["TextFeaturizer", "query_text"]
