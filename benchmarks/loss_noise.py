"""How far rounding moves token losses and gradients on the embedded model: noise of ``validate-loss``.

    python -m benchmarks.loss_noise [--json FILE]

The tolerances in qwendet/checks/loss/noise.py are 16 times these figures. float16 is measured where there is
a GPU: its trainer scales the loss.
"""

from __future__ import annotations

import torch

from benchmarks.report import parser, report
from qwendet.checks.loss.backward import gradient_gaps
from qwendet.checks.loss.noise import GRADIENT, TOKEN_LOSS
from qwendet.checks.loss.published import published_nll
from qwendet.checks.loss.watched import Watched, numbers
from qwendet.checks.subject import temporary_subject
from qwendet.config.load import load_config
from qwendet.loading.checkpoint import dtype_name


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
            watched = Watched(subject)
            tokens = watched.share.output.tokens
            assert tokens is not None
            gaps = torch.from_numpy(
                numbers(tokens.nll) - published_nll(watched, watched.detector, watched.lone_rows)
            )
            figures |= {
                f"token_loss_{name}": gaps.square().mean().sqrt().item(),
                f"token_loss_{name}_in_use": TOKEN_LOSS[dtype],
                f"gradient_{name}": max(gap for gap, _ in gradient_gaps(watched).values()),
                f"gradient_{name}_in_use": GRADIENT[dtype],
            }
    report(figures, options.json)


if __name__ == "__main__":
    main()
