"""``transformers serve MODEL --port PORT --dtype DTYPE``, images resized by PIL: there is no torchvision."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers.cli.serve import Serve
from transformers.cli.serving.model_manager import ModelManager

from qwendet.families.choose import family_in
from qwendet.loading.processor import load_processor


def load_by_pil(manager: ModelManager, model: str, gguf_file: str | None = None) -> Any:
    folder = model.split("@")[0]
    return load_processor(folder, family_in(Path(folder)), None, None)


if __name__ == "__main__":
    ModelManager._load_processor = load_by_pil
    folder, port, dtype = sys.argv[1:4]
    Serve(folder, port=int(port), device="cpu", dtype=dtype)
