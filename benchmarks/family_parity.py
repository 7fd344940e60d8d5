"""Each family against the class and processor of transformers, in float64, on random models of its config.

    python -m benchmarks.family_parity PATH/TO/PUBLISHED [--json FILE]

PATH holds folders of published config, tokenizer and processor files; the first of each family is taken.
Shown are the largest difference of the loss (``lm`` only), of its gradients, of the logits that it is made of
and of positions; and whether greedy answers are equal, token for token, and so ids, grids and pixels. The
published loss is rounded to float32: the reference is the cross-entropy of float64 logits. Fails beyond 1e-9.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.narrow_model import write_narrow_model
from benchmarks.report import machine, parser, shown
from benchmarks.worlds import PRETRAIN
from qwendet.config.load import build_config
from qwendet.console.console import print_table
from qwendet.data.images import open_image
from qwendet.data.samples import Sample
from qwendet.demo.shapes import write_dataset
from qwendet.encoding.collate import IGNORED, Batch
from qwendet.encoding.dataset import TrainingSamples
from qwendet.encoding.encode import EncodedSample
from qwendet.families.choose import FAMILIES
from qwendet.inference.generation import generate_answers
from qwendet.loader import Bundle, load
from qwendet.model.losses import LossManager, step_counts

TOLERANCE = 1e-9
NEW_TOKENS = 16
MODEL_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")

Figures = dict[str, float | bool]


def main() -> None:
    """Compare every family that has a folder."""
    options = parser(__doc__)
    options.add_argument("published", type=Path)
    given = options.parse_args()
    figures = {name: compare(folder) for name, folder in folders(given.published).items()}
    columns = list(next(iter(figures.values())))
    rows = [[name, *(shown(found[column]) for column in columns)] for name, found in figures.items()]
    print_table("Largest differences", ["family", *columns], rows)
    print(machine())
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if any(not is_sound(found) for found in figures.values()):
        raise SystemExit(f"a difference is above {TOLERANCE:g}, or a text, an id or a pixel differs")


def folders(published: Path) -> dict[str, Path]:
    """The first folder of each family."""
    found: dict[str, Path] = {}
    for config in sorted(published.glob("*/config.json")):
        found.setdefault(json.loads(config.read_text(encoding="utf-8"))["model_type"], config.parent)
    return {name: found[name] for name in FAMILIES if name in found}


def is_sound(figures: Figures) -> bool:
    """Whether nothing differs by more than rounding does."""
    return all(value is True if isinstance(value, bool) else value <= TOLERANCE for value in figures.values())


def compare(source: Path) -> Figures:
    """Differences of one family."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = write_narrow_model(source, folder / "model")
        train = write_dataset(PRETRAIN, folder / "train.jsonl", 2, seed=3)
        config = build_config(
            {
                "model": {"path": str(model), "dtype": "float64", "device": "cpu"},
                "data": {"train": str(train), "teacher_ratio": 1.0, "max_pixels": 65536},
                "detection": {"enabled": False},
                "loss": {"teacher_loss_weight": 0.0, "student_loss_weight": 0.0},
            },
            "benchmark",
        )
        bundle = load(config, for_inference=False)
        samples = TrainingSamples(bundle.config, bundle.encoder())
        batch = bundle.collator()([samples[index] for index in range(2)])
        return {
            **_losses(bundle, batch),
            **_outputs(bundle, batch),
            "text_equal": _text_is_equal(bundle, [samples.sample(index) for index in range(2)]),
            "inputs_equal": all(_inputs_are_equal(bundle, samples.sample(index)) for index in range(2)),
        }


def _losses(bundle: Bundle, batch: Batch) -> Figures:
    ours = _gradients(bundle.detector, lambda: _our_loss(bundle, batch))
    theirs = _gradients(bundle.detector, lambda: _their_loss(bundle, batch))
    gradient = max((a - b).abs().max().item() for a, b in zip(ours[1], theirs[1], strict=True))
    return {"loss": abs(ours[0] - theirs[0]), "gradient": gradient}


def _outputs(bundle: Bundle, batch: Batch) -> Figures:
    detector, inputs = bundle.detector.eval(), {name: batch[name] for name in MODEL_INPUTS}
    own = batch["attention_mask"].bool()
    rows = batch["labels"][:, 1:] != IGNORED
    with torch.no_grad():
        _, images = detector.encode_images(batch["pixel_values"], torch.tensor(batch["grids"]))
        hidden = detector.run_language_model(batch, detector._embed(batch)[0], images)
        gap = detector.vlm.lm_head(hidden[:, :-1][rows]) - _published_logits(bundle, batch)
        published, _ = detector.vlm.model.get_rope_index(
            **{name: value for name, value in inputs.items() if name != "pixel_values"}
        )
    moved = (batch["position_ids"][-3:] - published)[:, own]
    return {"logits": gap.abs().max().item(), "positions": float(moved.abs().max())}


def _published_logits(bundle: Bundle, batch: Batch) -> torch.Tensor:
    """Float64 ``(R, V)`` of the tokens that are learned."""
    vlm = bundle.detector.vlm
    hidden = vlm.model(**{name: batch[name] for name in MODEL_INPUTS}, use_cache=False).last_hidden_state
    logits: torch.Tensor = vlm.lm_head(hidden[:, :-1][batch["labels"][:, 1:] != IGNORED])
    return logits


def _text_is_equal(bundle: Bundle, samples: list[Sample]) -> bool:
    """Greedy answers of a padded batch, and those of the published ``generate`` to each prompt alone."""
    encoder, tokenizer = bundle.encoder(), bundle.processor.tokenizer
    items = [encoder.encode(sample, with_answer=False) for sample in samples]
    answers = generate_answers(bundle.detector, tokenizer, bundle.collator()(items), NEW_TOKENS)
    return [answer.text for answer in answers] == [_generated(bundle, item) for item in items]


def _generated(bundle: Bundle, item: EncodedSample) -> str:
    tokenizer = bundle.processor.tokenizer
    inputs = {name: getattr(item, name)[None] for name in ("input_ids", "mm_token_type_ids")}
    written = bundle.detector.vlm.generate(
        **inputs,
        attention_mask=torch.ones_like(inputs["input_ids"]),
        pixel_values=item.pixel_values.double(),
        image_grid_thw=item.image_grid_thw,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )[0, len(item.input_ids) :]
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    return str(tokenizer.decode([token for token in written.tolist() if token not in ends]))


def _inputs_are_equal(bundle: Bundle, sample: Sample) -> bool:
    """The encoder's prompt and what the published processor's own call makes of the decoded one."""
    item, processor = bundle.encoder().encode(sample, with_answer=False), bundle.processor
    pads = processor.tokenizer.decode(item.input_ids.tolist())
    image_token = processor.tokenizer.convert_ids_to_tokens(bundle.detector.config.image_token_id)
    while image_token * 2 in pads:
        pads = pads.replace(image_token * 2, image_token)
    pictures = [open_image(turn.image, turn.root, "") for turn in (*sample.teachers, sample.student)]
    made: Any = processor(text=[pads], images=pictures, return_tensors="pt")
    return (
        torch.equal(made["input_ids"][0], item.input_ids)
        and torch.equal(made["image_grid_thw"], item.image_grid_thw)
        and torch.equal(made["pixel_values"], item.pixel_values)
    )


def _our_loss(bundle: Bundle, batch: Batch) -> torch.Tensor:
    manager = LossManager(bundle.config.loss, one_to_many=1)
    return manager(bundle.detector(batch).tokens, None, None, step_counts([batch])).total


def _their_loss(bundle: Bundle, batch: Batch) -> torch.Tensor:
    labels = batch["labels"][:, 1:]
    return F.cross_entropy(_published_logits(bundle, batch), labels[labels != IGNORED])


def _gradients(
    module: torch.nn.Module, loss_of: Callable[[], torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    module.zero_grad()
    loss = loss_of()
    loss.backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    return loss.item(), [gradient.clone() for gradient in gradients if gradient is not None]


if __name__ == "__main__":
    main()
