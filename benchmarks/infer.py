"""Images a second of the head, of text answers, and of plain ``transformers.generate`` beside them.

    python -m benchmarks.infer                   about 5 minutes on two cores, 2 GB

One random checkpoint of the true vocabulary and one set of BCCD photographs from $QWENDET_SHARED (../shared)
for all. Every text answer has 256 new tokens: the end of turn is not let through, in either way. The ways
alternate within one process, batch 1 and 8; a ratio is the median of the rounds' ratios.

With ``--demo`` and ``--true``, folders of benchmarks.demo and benchmarks.true_vocabulary, their checkpoints
answer the demo's held-out scenes, too, drafted and not: figures that begin with ``draft``, and with ``true_``
before them those of the true vocabulary.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.drafts import draft_figures, half_precision
from benchmarks.random_model import MAX_PIXELS, MODEL_INPUTS, PHOTOGRAPHS, write_model, write_photographs
from benchmarks.report import parser, report

BATCH = 8


def predictor_of(folder: Path, new_tokens: int) -> Any:
    """A predictor on a checkpoint with an untrained head."""
    from qwendet.config.load import build_config
    from qwendet.inference.predictor import Predictor
    from qwendet.loader import load

    settings = {
        "model": {"path": str(write_model(folder / "model")), "dtype": "float32", "device": "cpu"},
        "data": {
            "train": str(write_photographs(folder / "data", BATCH)),
            "root": str(PHOTOGRAPHS),
            "max_pixels": MAX_PIXELS,
        },
        "infer": {"max_new_tokens": new_tokens, "batch_size": BATCH},
    }
    bundle = load(build_config(settings, "benchmark"), for_inference=False)
    never_end(bundle.detector.vlm)
    return Predictor(bundle)


def never_end(vlm: Any) -> None:
    """Make the end of turn and the padding the least likely tokens: every answer has its full length."""
    import torch

    untied = torch.nn.Linear(vlm.lm_head.in_features, vlm.lm_head.out_features, bias=True)
    with torch.no_grad():
        untied.weight = vlm.lm_head.weight
        untied.bias.zero_()
        untied.bias[[vlm.config.text_config.eos_token_id, vlm.config.text_config.pad_token_id]] = -1e9
    vlm.lm_head = untied


def ways_of(predictor: Any, new_tokens: int) -> dict[str, Callable[[list[Any]], int]]:
    """What is timed: each takes samples in one batch and returns how many tokens it wrote."""
    import torch

    from qwendet.inference.drafts import AnswerDrafts
    from qwendet.inference.generation import generate_answers

    bundle = predictor.bundle
    drafts = AnswerDrafts(bundle)
    vlm, tokenizer = bundle.detector.vlm, bundle.processor.tokenizer

    def batch_of(samples: list[Any]) -> Any:
        return predictor.collator([predictor.encoder.encode(sample, with_answer=False) for sample in samples])

    def head(samples: list[Any]) -> int:
        list(predictor.predict(samples, "head"))
        return 0

    def text(samples: list[Any]) -> int:
        answers = generate_answers(bundle.detector, tokenizer, batch_of(samples), new_tokens)
        return sum(len(answer.log_probs) for answer in answers)

    def drafted(samples: list[Any]) -> int:
        items = [predictor.encoder.encode(sample, with_answer=False) for sample in samples]
        batch = predictor.collator(items)

        def drafting(head: Any) -> list[Any]:
            return [*map(drafts.of, items, predictor._by_head(head, items, batch))]

        answers = generate_answers(bundle.detector, tokenizer, batch, new_tokens, drafting=drafting)
        return sum(len(answer.log_probs) for answer in answers)

    @torch.inference_mode()
    def generate(samples: list[Any]) -> int:
        batch = batch_of(samples)
        inputs = {key: batch[key] for key in MODEL_INPUTS}
        answers = vlm.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        tokenizer.batch_decode(answers)
        return int(answers.shape[1] - batch["input_ids"].shape[1]) * len(samples)

    return {"head": head, "text": text, "drafted": drafted, "generate": generate}


def measure(
    ways: dict[str, Callable[[list[Any]], int]], samples: list[Any], new_tokens: int
) -> dict[str, float]:
    """Seconds of each way at batch 1 and, where it is asked for, 8."""
    seconds = {}
    for size in (1, BATCH):
        for way, act in ways.items():
            started = time.perf_counter()
            written = act(samples[:size])
            seconds[f"{way}_b{size}"] = (time.perf_counter() - started) / size
            if way != "head" and written != new_tokens * size:
                raise SystemExit(f"{way} wrote {written} tokens instead of {new_tokens * size}")
    return seconds


def figures(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Images a second, and the ratios."""
    result = {
        f"{name}_images_per_second": 1 / statistics.median(row[name] for row in rounds)
        for name in sorted(rounds[0])
    }
    for name, fast, slow in (
        ("head_over_text", "head_b1", "text_b1"),
        ("text_over_generate_b1", "text_b1", "generate_b1"),
        ("text_over_generate_b8", "text_b8", "generate_b8"),
        ("untrained_draft_over_plain_b1", "drafted_b1", "text_b1"),
        ("untrained_draft_over_plain_b8", "drafted_b8", "text_b8"),
        ("text_b8_over_generate_b1", "text_b8", "generate_b1"),
    ):
        result[name] = statistics.median(row[slow] / row[fast] for row in rounds)
    return result


def main() -> None:
    """Load once, run the ways in turn, report."""
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3, help="times each way runs (3)")
    arguments.add_argument("--tokens", type=int, default=256, help="new tokens of each answer (256)")
    arguments.add_argument("--demo", type=Path, help="folder of benchmarks.demo")
    arguments.add_argument("--true", type=Path, help="folder of benchmarks.true_vocabulary; needs --demo")
    arguments.add_argument("--images", type=int, default=200, help="held-out scenes to answer (200)")
    options = arguments.parse_args()
    from qwendet.data.samples import SampleFile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictor = predictor_of(folder, options.tokens)
        samples = list(SampleFile(folder / "data" / "photographs.jsonl", PHOTOGRAPHS))
        ways = ways_of(predictor, options.tokens)
        measure(ways_of(predictor, 2), samples, 2)  # warm up
        rounds = []
        for number in range(1, options.rounds + 1):
            rounds.append(measure(ways, samples, options.tokens))
            shown = ", ".join(f"{way} {seconds:.2f} s" for way, seconds in rounds[-1].items())
            print(f"round {number}, an image: {shown}", flush=True)
    found = figures(rounds)
    if options.demo is not None:
        scenes = list(SampleFile(options.demo / "data" / "test.jsonl"))[: options.images]
        for prefix, made in (("", options.demo), ("true_", options.true)):
            if made is not None:
                checkpoint = made / "run" / "final"
                own = draft_figures(checkpoint, scenes, options.rounds)
                own["bfloat16_answers_differ"] = half_precision(checkpoint, scenes[:24])
                found |= {f"{prefix}{name}": value for name, value in own.items()}
    report(found, options.json)


if __name__ == "__main__":
    main()
