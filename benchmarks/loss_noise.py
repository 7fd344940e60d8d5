"""How far rounding moves token losses and gradients on the embedded model: noise of ``validate-loss``.

    python -m benchmarks.loss_noise [--json FILE]

Tolerances in qwendet/checks/loss/tokens.py and tests/invariants/loss_backward.py are 16 times these figures.
float16 is measured where there is a GPU: its trainer scales the loss.
"""

from __future__ import annotations

import torch

from benchmarks.report import parser, report
from qwendet.checks.loss.tokens import TOKEN_LOSS, base_nll, batch_nll
from qwendet.checks.subject import temporary_subject
from qwendet.config.load import load_config
from qwendet.loading.checkpoint import dtype_name
from tests.invariants.loss_backward import GRADIENT, gradient_gaps
from tests.invariants.watched import Watched


def main() -> None:
    """Measure each type and print it beside what the checks were given."""
    options = parser(__doc__).parse_args()
    figures: dict[str, float] = {}
    for dtype in TOKEN_LOSS:
        name = dtype_name(dtype)
        if dtype == torch.float16 and not torch.cuda.is_available():
            continue
        config = load_config(
            "examples/tiny.yaml",
            [f"model.dtype={name}", f"model.device={'cuda' if dtype == torch.float16 else 'cpu'}"],
        )
        with temporary_subject(config) as subject:
            detector, rows = subject.bundle.detector, range(len(subject.samples))
            gaps = batch_nll(subject, detector) - base_nll(subject, detector, rows)
            figures |= {
                f"token_loss_{name}": gaps.square().mean().sqrt().item(),
                f"token_loss_{name}_in_use": TOKEN_LOSS[dtype],
                f"gradient_{name}": max(gap for gap, _ in gradient_gaps(Watched(subject)).values()),
                f"gradient_{name}_in_use": GRADIENT[dtype],
            }
    report(figures, options.json)


if __name__ == "__main__":
    main()
