"""The ledger: budgets, reservations, settlements, and books that can be verified."""

from optllm_router.ledger._balances import Balance
from optllm_router.ledger._charges import Charge, Period
from optllm_router.ledger._leases import LeasingLedger
from optllm_router.ledger._ledger import Ledger
from optllm_router.ledger._limits import keep_budget
from optllm_router.ledger._operations import Refusal, Reservation, Soft
from optllm_router.ledger._reconciling import (
    Correction,
    Reconciliation,
    read_charges,
    reconcile,
)
from optllm_router.ledger._remains import ExpiredBlock
from optllm_router.ledger._setting import set_what_is_given
from optllm_router.ledger._thresholds import Crossing

__all__ = [
    "Balance",
    "Charge",
    "Correction",
    "Crossing",
    "ExpiredBlock",
    "LeasingLedger",
    "Ledger",
    "Period",
    "Reconciliation",
    "Refusal",
    "Reservation",
    "Soft",
    "keep_budget",
    "read_charges",
    "reconcile",
    "set_what_is_given",
]
