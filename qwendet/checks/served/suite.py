"""``check-served``: the running server against the checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from qwendet.checks.result import Table, Verdict
from qwendet.checks.runner import require_known, run_checks
from qwendet.checks.served import answers, prompt
from qwendet.checks.served.observed import Observed
from qwendet.checks.served.pictures import calibration_samples
from qwendet.config.load import override_config
from qwendet.data.labels import label_chunks
from qwendet.errors import Result
from qwendet.inference.chat_server import ChatServer
from qwendet.inference.inputs import collect_samples
from qwendet.inference.predictor import Predictor

CHECKS: Mapping[str, Callable[[Observed], Verdict]] = {
    "served.model": prompt.model,
    "served.template": prompt.template,
    "served.images": prompt.images,
    "served.resize": prompt.resize,
    "served.greedy": answers.greedy,
    "served.weights": answers.weights,
    "served.text": answers.text,
    "served.boxes": answers.boxes,
    "served.end": answers.end,
    "served.order": answers.order,
}
MOST_OF_DATA = 8
"""Images of ``--data`` that are asked about."""


def run_served_checks(
    url: str,
    checkpoint: Path,
    *,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    only: Collection[str] = (),
) -> tuple[list[Result], list[Table]]:
    """Run the ``served.*`` checks."""
    require_known(only, list(CHECKS))
    samples = [] if data is None else collect_samples([data])[:MOST_OF_DATA]
    predictor = Predictor.from_checkpoint(checkpoint, overrides=overrides, mode="text")
    server = ChatServer.find(url, predictor.bundle)
    with tempfile.TemporaryDirectory(prefix="qwendet-served-") as folder:
        bundle = predictor.bundle
        drawn = calibration_samples(Path(folder), predictor.encoder.limits)
        most = bundle.config.data.labels_per_request
        asked = [label_chunks(sample, bundle.labels, most)[0] for sample in [*drawn, *samples]]
        observed = Observed(predictor, server, asked, checkpoint)
        checks = {id: check for id, check in CHECKS.items() if not only or id in only}
        return run_checks(checks, observed, override_config(predictor.bundle.config, ()).data.allow)
