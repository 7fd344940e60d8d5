"""What the quick preflight costs before training: seconds, and its share of a run of ten minutes.

    python -m benchmarks.preflight_cost [CONFIG]

Everything that `train.preflight: quick` runs, on a model that is loaded already, and the checks of config
and data before it, as in `qwendet train`.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from benchmarks.report import parser, report
from qwendet.checks.config.suite import require_config_checks
from qwendet.checks.preflight import require_preflight
from qwendet.config.load import load_config
from qwendet.training.build import create_trainer

RUNS = 3
RUN_SECONDS = 600.0
TINY = Path(__file__).parent.parent / "examples" / "tiny.yaml"


def main() -> None:
    """Run it a few times on one model, and print the median."""
    arguments = parser(__doc__)
    arguments.add_argument("config", nargs="?", type=Path, default=TINY)
    options = arguments.parse_args()
    config = load_config(options.config, ["train.preflight=quick"])
    bundle = create_trainer(config).bundle
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        require_config_checks(config)
        require_preflight(bundle)
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    figures = {"quick_seconds": median, "share_of_ten_minutes": median / RUN_SECONDS}
    report(figures, options.json)


if __name__ == "__main__":
    main()
