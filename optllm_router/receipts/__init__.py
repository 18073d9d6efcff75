"""Receipts: what was spent, by model, scope and day, against one model for everything."""

from optllm_router.receipts._baseline import Baseline
from optllm_router.receipts._estimate import Estimate
from optllm_router.receipts._success import Success
from optllm_router.receipts.receipt import Moment, Receipt, make_receipt

__all__ = ["Baseline", "Estimate", "Moment", "Receipt", "Success", "make_receipt"]
