"""Text to numeric features: offline, deterministic, well under a millisecond per query."""

from optllm_router.features._featurizer import N_DIRECTIONS, TextFeaturizer, coarse_features
from optllm_router.features._text import query_text
from optllm_router.features._texts import Texts

__all__ = ["N_DIRECTIONS", "TextFeaturizer", "Texts", "coarse_features", "query_text"]
