"""How good the default is: gap closed, harm, parity and savings, as means over seeds.

    python tests/benchmarks/quality.py FOLDER... --labels 0.005 0.02 0.1 0.3 --seeds 3 --json

``least_margin`` is the AUC minus the static mixture's: the default never harms where it is not
negative. ``deployed`` is what ``match_best`` picks without seeing the test labels.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from optllm_router.evaluation import METHODS, RecordedOutcomes, evaluate, load_recorded


def measure(recorded: RecordedOutcomes, labels: float, seeds: int, method: str) -> dict[str, Any]:
    """Means over the seeds 0 to ``seeds - 1``."""
    rows = []
    for seed in range(seeds):
        run = evaluate(recorded, labels=labels, seed=seed, methods=[METHODS[method]])
        found, static = run.methods[method].figures, run.methods["static"].figures
        deployed = found.deployed
        rows.append(
            {
                "gap_closed": found.gap_closed,
                "margin": found.auc - static.auc,
                "savings_at_parity": found.savings_at_parity,
                "max_accuracy": found.max_accuracy,
                "deployed_accuracy_delta": deployed.accuracy_delta if deployed else None,
                "deployed_cost_ratio": deployed.cost_ratio if deployed else None,
                "brier": found.brier,
                "ece": found.ece,
                "fit_seconds": found.fit_seconds,
            }
        )
        print(f"{recorded.name} {labels:g} seed {seed}: {rows[-1]}", file=sys.stderr)
    return {
        "dataset": recorded.name,
        "labels": labels,
        "seeds": seeds,
        "least_margin": min(row["margin"] for row in rows),
        **{key: _mean([row[key] for row in rows]) for key in rows[0]},
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--labels", nargs="+", type=float, default=[0.02, 0.1, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", default="optllm", choices=sorted(METHODS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    for folder in options.folders:
        recorded = load_recorded(folder)
        for labels in options.labels:
            results.append(measure(recorded, labels, options.seeds, options.method))
            if not options.json:
                one = results[-1]
                print(
                    f"{one['dataset']:9} {labels:6.1%}  gap closed {one['gap_closed']:+.3f}  "
                    f"margin {one['margin']:+.4f} (least {one['least_margin']:+.4f})  "
                    f"deployed {one['deployed_accuracy_delta']:+.4f} "
                    f"x{one['deployed_cost_ratio']:.2f}  Brier {one['brier']:.3f} "
                    f"ECE {one['ece']:.3f}"
                )
    if options.json:
        machine = {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "scikit-learn")},
        }
        print(json.dumps({"method": options.method, "results": results, "machine": machine}))


if __name__ == "__main__":
    main()
