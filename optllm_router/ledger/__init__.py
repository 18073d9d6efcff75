"""The ledger: budgets, reservations, settlements, and books that can be verified."""

from optllm_router.ledger._balances import Balance
from optllm_router.ledger._ledger import Ledger, Refusal, Reservation
from optllm_router.ledger._thresholds import Crossing

__all__ = ["Balance", "Crossing", "Ledger", "Refusal", "Reservation"]
