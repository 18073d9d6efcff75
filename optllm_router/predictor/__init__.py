"""Which candidate answers which text correctly, and at what length: from partial labels."""

from optllm_router.predictor._lengths import LengthPredictor
from optllm_router.predictor._naming import PREDICTORS, make_predictor, predictor_maker
from optllm_router.predictor._saving import load_predictor, save_predictor
from optllm_router.predictor._text_predictor import TextPredictor

__all__ = [
    "PREDICTORS",
    "LengthPredictor",
    "TextPredictor",
    "load_predictor",
    "make_predictor",
    "predictor_maker",
    "save_predictor",
]
