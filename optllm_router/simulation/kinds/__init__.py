"""The kinds of synthetic tasks, one file each."""

from __future__ import annotations

from optllm_router.simulation.kinds.arithmetic import ARITHMETIC
from optllm_router.simulation.kinds.dates import DATES
from optllm_router.simulation.kinds.kind import Kind
from optllm_router.simulation.kinds.logic import LOGIC
from optllm_router.simulation.kinds.records import RECORDS
from optllm_router.simulation.kinds.strings import STRINGS
from optllm_router.simulation.kinds.units import UNITS

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (ARITHMETIC, DATES, UNITS, RECORDS, STRINGS, LOGIC)
}
"""Every kind by its name."""

__all__ = ["KINDS", "Kind"]
