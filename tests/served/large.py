"""`served.weights` of a model of 36 layers in bfloat16: what it says of servers that round otherwise.

    python -m tests.served.large [tiny | tiny-qwen3-vl]         several minutes of one core, so it is no test

The three servers of `test_half_precision__is_held_against_its_own_rounding`, and a sound one.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

from benchmarks.worlds import PRETRAIN
from qwendet.checks.ids import SERVED, chosen
from qwendet.checks.runner import run_checks
from qwendet.checks.served.observed import Observed
from qwendet.checks.served.pictures import calibration_samples
from qwendet.config.schema import Config, DataConfig, ModelConfig
from qwendet.data.samples import SampleFile
from qwendet.demo.shapes import write_dataset
from qwendet.inference.predictor import Predictor
from tests.planted.large import write_deep_model
from tests.served.stand_in import StandIn, serving
from tests.served.test_check_served import MOST_TOKENS, eager, find, in_8_bits, other_weights

SERVERS = {
    "sound": lambda vlm: vlm,
    "other kernels": eager,
    "float32": lambda vlm: copy.deepcopy(vlm).float(),
    "eight bits": lambda vlm: other_weights(vlm, lambda weight: in_8_bits(weight.float()).to(weight.dtype)),
}


def main(name: str, folder: Path) -> None:
    scenes = write_dataset(PRETRAIN, folder / "scenes.jsonl", 4, seed=5)
    data = DataConfig(train=str(scenes), labels=PRETRAIN.labels)
    write_deep_model(Config(model=ModelConfig(path=name, device="cpu"), data=data), folder / "deep")
    settings = ["model.device=cpu", f"infer.max_new_tokens={MOST_TOKENS}"]
    predictor = Predictor.from_checkpoint(folder / "deep", overrides=settings, mode="text")
    drawn = calibration_samples(folder, predictor.encoder.limits)
    known: dict[str, object] = {}
    for server, change in SERVERS.items():
        vlm = change(predictor.bundle.detector.vlm)
        with serving(StandIn(vlm, predictor.bundle.processor)) as url:
            observed = Observed(
                predictor, find(predictor, url), [*drawn, *SampleFile(scenes)], folder / "deep"
            )
            vars(observed).update(known)
            (result,) = run_checks(chosen(SERVED, ["served.weights"]), observed, ())[0]
            known = {key: vars(observed)[key] for key in ("own", "items", "rounding", "in_other_precision")}
        print(f"{result.status}  {server}: {result.what}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(*sys.argv[1:] or ["tiny"], Path(place))
