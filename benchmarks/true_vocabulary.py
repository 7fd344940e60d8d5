"""A small model of the true vocabulary that writes valid answers, for ``benchmarks.infer --true``.

    python -m benchmarks.demo --output runs/demo                        trains the model that it is made of
    python -m benchmarks.true_vocabulary runs/demo --output runs/true   about 20 minutes on two cores

The demo's checkpoint gets the published tokenizer: the embedding of each of the 151,665 tokens is the mean of
those of its pieces in the small vocabulary. Then it trains on the demo's own scenes for as many steps as it
takes until its answers are in the published tokens.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.random_model import FOLDERS, PUBLISHED
from qwendet.config.load import load_config
from qwendet.console.console import progress, setup
from qwendet.files import atomic_folder
from qwendet.loader import Bundle, config_of_checkpoint, load
from qwendet.loading.checkpoint import save_checkpoint
from qwendet.loading.processor import make_processor
from qwendet.progress import shown_by
from qwendet.train import train

CONFIG = """\
model:
  path: start
  dtype: float32
data:
  train: {data}
loss:
  lm_loss_weight: 4.0
train:
  output_dir: run
  max_steps: {steps}
  batch_size: 8
  learning_rate: 1.0e-3
  head_learning_rate: 5.0e-4
  preflight: "off"
"""


def main() -> None:
    """Give the demo's model the published vocabulary, and train it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder that benchmarks.demo wrote")
    parser.add_argument("--output", type=Path, default=Path("runs/true"))
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    setup(debug=False, quiet=False)
    final = options.demo / "run" / "final"
    bundle = load(config_of_checkpoint(final), for_inference=True)
    with_true_vocabulary(bundle, options.output / "start")
    settings = CONFIG.format(data=(options.demo / "data" / "train.jsonl").resolve(), steps=options.steps)
    (options.output / "config.yaml").write_text(settings, encoding="utf-8")
    train(load_config(options.output / "config.yaml"))


def with_true_vocabulary(bundle: Bundle, folder: Path) -> None:
    """Save a model with the published tokenizer in place of its own."""
    tokenizer = AutoTokenizer.from_pretrained(PUBLISHED / FOLDERS["qwen2_5_vl"])
    vlm, own = bundle.detector.vlm, bundle.processor.tokenizer
    vlm.get_input_embeddings().weight.data = embeddings(vlm, own, tokenizer)
    vlm.lm_head.weight = vlm.get_input_embeddings().weight
    take_ids(vlm, own, tokenizer)
    processor = make_processor(bundle.processor.family, bundle.processor.image_processor, tokenizer)
    config = bundle.config.model_copy(
        update={"model": bundle.config.model.model_copy(update={"dtype": "float32"})}
    )
    bundle = replace(bundle, processor=processor, config=config)
    with atomic_folder(folder) as staging:
        save_checkpoint(staging, bundle.detector.float(), processor, config, step=0)


def embeddings(vlm: Any, own: Any, tokenizer: Any) -> torch.Tensor:
    """``(published vocabulary, text)``: of each token the mean of its pieces."""
    weight = vlm.get_input_embeddings().weight.data.float()
    words = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    pieces = own(words, add_special_tokens=False)["input_ids"]
    rows = [weight[row].mean(0) if row else weight.new_zeros(weight.shape[1]) for row in pieces]
    size = -(-len(rows) // 128) * 128
    return torch.cat([torch.stack(rows), weight.new_zeros(size - len(rows), weight.shape[1])])


def take_ids(vlm: Any, own: Any, tokenizer: Any) -> None:
    """Put the published ids of special tokens in place of the small vocabulary's."""
    text = vlm.config.text_config
    text.vocab_size = vlm.lm_head.weight.shape[0]
    vlm.lm_head.out_features = vlm.model.get_input_embeddings().num_embeddings = text.vocab_size
    for config in (vlm.config, text, vlm.generation_config):
        for name, value in vars(config).items():
            if name.endswith("_token_id") and isinstance(value, int):
                setattr(config, name, tokenizer.convert_tokens_to_ids(own.convert_ids_to_tokens(value)))


if __name__ == "__main__":
    with shown_by(progress):
        main()
