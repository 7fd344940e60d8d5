"""What `qwendet export` writes, served by vLLM on this machine's CPU: one line a claim.

    make serving-check                                  sets the environment up first
    python -m benchmarks.serving_check --vllm .venv-vllm/bin/vllm [--family qwen3_vl] [--images 16]

Of each family a small model is exported and started by the line that its serving.json has. Qwen3-VL is the
embedded model, which was trained; the others are random, in sizes that vLLM computes on a CPU: heads of 64,
and of Qwen3.5 recurrent heads of 128, in bfloat16 alone. Its texts are not compared:
vLLM 0.32 gave NaN on the CPU that was tried.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from benchmarks.report import machine, parser
from benchmarks.worlds import PRETRAIN
from qwendet.checks.preflight import run_served_checks
from qwendet.config.schema import Config, DataConfig, InferConfig, ModelConfig
from qwendet.data.images import open_image
from qwendet.data.samples import Sample
from qwendet.demo.shapes import write_dataset
from qwendet.demo.tiny import image_processor, tiny_config, tokenizer_texts, train_tokenizer
from qwendet.encoding.encode import EncodedSample
from qwendet.encoding.image_tokens import num_image_tokens
from qwendet.encoding.resize import model_image_size
from qwendet.evaluation.command import evaluate_model
from qwendet.export.directory import export
from qwendet.export.serving import SERVING
from qwendet.families.choose import FAMILIES
from qwendet.families.family import PixelLimits
from qwendet.files import atomic_folder
from qwendet.inference.generation import decode_with_ends, generate_answers
from qwendet.inference.inputs import collect_samples
from qwendet.inference.predictor import Predictor
from qwendet.loader import load
from qwendet.loading.checkpoint import save_checkpoint
from qwendet.loading.processor import make_processor, save_processor

TRAINED = {"qwen3_vl": "tiny-qwen3-vl"}
ON_CPU = ["model.device=cpu"]
MOST_METRIC_OFF = 1e-6
TEXT: dict[str, Any] = {"hidden_size": 256}
MROPE = [8, 12, 12]
CHANGED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (TEXT, {"hidden_size": 256}),
    "qwen2_5_vl": (TEXT, {"out_hidden_size": 256}),
    "qwen3_5": (TEXT | {"linear_key_head_dim": 128, "linear_value_head_dim": 128}, {"out_hidden_size": 256}),
}
"""Sizes of the random models' language and vision parts, where they are not the embedded model's."""
IN_BFLOAT16 = ("qwen3_5",)
NOT_COMPARED = "not compared: vLLM 0.32 gave NaN on the CPU that was tried"
MAX_NEW_TOKENS = 128
SECONDS_TO_START = 900
SECONDS_TO_END = 30
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "900",  # a busy machine takes more than the 300 of vLLM
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
}
SMALL = ["--enforce-eager", "--max-num-seqs", "1"]


@dataclass(frozen=True)
class Claim:
    """What was looked at.

    Attributes:
        name: of the claim.
        status: ``pass``, ``fail``, or ``skip``.
        found: what was seen.
    """

    name: str
    status: str
    found: str


def write_random(family_name: str, folder: Path) -> Path:
    """Write a random model of a family as a plain Hugging Face directory."""
    family = FAMILIES[family_name]
    tokenizer = train_tokenizer(family, tokenizer_texts(family))
    config: Any = tiny_config(family, tokenizer)
    for part, changes in zip((config.text_config, config.vision_config), CHANGED[family_name], strict=True):
        for name, value in changes.items():
            setattr(part, name, value)
    if family_name != "qwen3_5":
        config.text_config.rope_parameters["mrope_section"] = MROPE
    torch.manual_seed(0)
    getattr(transformers, family.model_class)(config).save_pretrained(folder)
    save_processor(make_processor(family, image_processor(family), tokenizer), folder)
    return folder


def write_export(family_name: str, samples: Path, folder: Path) -> Path:
    """Export a checkpoint of a family's model, with a head; the directory that is served."""
    path = TRAINED.get(family_name) or str(write_random(family_name, folder / "base"))
    config = Config(
        model=ModelConfig(path=path, dtype="float32", device="cpu"),
        data=DataConfig(train=str(samples), labels=PRETRAIN.labels),
        infer=InferConfig(max_new_tokens=MAX_NEW_TOKENS),
    )
    bundle = load(config, for_inference=False)
    with atomic_folder(folder / "checkpoint") as beside:
        save_checkpoint(beside, bundle.detector, bundle.processor, bundle.config, step=0)
    dtype = "bfloat16" if family_name in IN_BFLOAT16 else "float32"
    return export(folder / "checkpoint", folder / "model", dtype=dtype).output


@contextmanager
def served(folder: Path, vllm: Path, log: Path) -> Iterator[tuple[str, float]]:
    """Start vLLM on an exported directory; its address and the seconds until it answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = shlex.split(json.loads((folder / SERVING).read_text(encoding="utf-8"))["vllm"])
    command = [str(vllm.resolve().parent / line[0]), *line[1:], *SMALL, "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    environment["PATH"] = f"{vllm.resolve().parent}{os.pathsep}{environment['PATH']}"
    url, started = f"http://127.0.0.1:{port}", time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        while not _answers(url):
            if process.poll() is not None or time.monotonic() - started > SECONDS_TO_START:
                raise SystemExit(f"vLLM did not start:\n{log.read_text(encoding='utf-8')[-4000:]}")
            time.sleep(1)
        yield url, time.monotonic() - started
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End vLLM and the processes that it started, also where it does not listen."""
    for way in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, way)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(url: str, serving: dict[str, Any], model: str, picture: Image.Image) -> dict[str, Any]:
    """Ask a server about an image as serving.json says, and for its tokens."""
    picture.save(png := io.BytesIO(), "PNG")
    image = {"url": "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()}
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": serving["request"]}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if serving["system"]:
        messages.insert(0, {"role": "system", "content": serving["system"]})
    body = {"model": model, "messages": messages, **serving["sampling"]}
    body |= {"logprobs": serving["dtype"] == "float32", "return_token_ids": True}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS_TO_START) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def resized(sample: Sample, encoded: EncodedSample, patch_size: int) -> Image.Image:
    """The image as the model sees it, so that the server's own resize has nothing to do."""
    image = open_image(sample.student.image, sample.student.root, sample.where)
    size = model_image_size(encoded.image_grid_thw[-1].tolist(), patch_size)
    return image.resize(size, Image.Resampling.BICUBIC)


def keeps_limits(url: str, serving: dict[str, Any], model: str, picture: Image.Image, tokens: int) -> bool:
    """Whether the server shrinks an image three times as wide and high to as many tokens as qwendet.

    Args:
        url: of the server.
        serving: its serving.json.
        model: that it serves.
        picture: whose prompt has ``tokens`` tokens.
        tokens: of a prompt.
    """
    limits = PixelLimits(serving["min_pixels"], serving["max_pixels"], serving["factor"])
    large = picture.resize((3 * picture.width, 3 * picture.height))
    wanted = tokens - num_image_tokens(picture.size, limits) + num_image_tokens(large.size, limits)
    once = serving | {"sampling": {"temperature": 0, "max_tokens": 1}}
    return bool(ask(url, once, model, large)["usage"]["prompt_tokens"] == wanted)


def text_of(choice: dict[str, Any], tokenizer: Any, *, is_random: bool) -> str:
    """The text of a server's answer; random bytes are no text, so that a server writes less of them."""
    if not is_random:
        return str(choice["message"]["content"])
    return decode_with_ends(tokenizer, [id_ for id_ in choice["token_ids"] if id_ != tokenizer.eos_token_id])[
        0
    ]


def compare(url: str, folder: Path, images: Sequence[Sample], family_name: str) -> list[Claim]:
    """Ask the server and qwendet about each image."""
    predictor = Predictor.from_checkpoint(folder)
    detector, tokenizer = predictor.bundle.detector, predictor.bundle.processor.tokenizer
    patch_size = predictor.bundle.processor.image_processor.patch_size
    serving = json.loads((folder / SERVING).read_text(encoding="utf-8"))
    counts, kept, texts, differences, boxes, seconds = [], [], [], [0.0], 0, 0.0
    for sample in images:
        encoded = predictor.encoder.encode(sample, with_answer=False)
        batch = predictor.collator([encoded])
        own = generate_answers(detector, tokenizer, batch, MAX_NEW_TOKENS)[0]
        started = time.monotonic()
        picture = resized(sample, encoded, patch_size)
        answer = ask(url, serving, folder.name, picture)
        seconds += time.monotonic() - started
        counts.append(answer["usage"]["prompt_tokens"] == len(encoded.input_ids))
        kept.append(keeps_limits(url, serving, folder.name, picture, len(encoded.input_ids)))
        choice = answer["choices"][0]
        texts.append(text_of(choice, tokenizer, is_random=family_name not in TRAINED) == own.text)
        if texts[-1] and choice["logprobs"]:
            pairs = zip(choice["logprobs"]["content"], own.log_probs, strict=False)  # theirs has the end
            differences += [abs(token["logprob"] - log_prob) for token, log_prob in pairs]
        boxes += own.text.count("bbox_2d")
    of = f"of {len(images)}"
    equal = (
        f"equal on {sum(texts)} {of} images, {boxes} boxes; log-probabilities of its tokens differ by at most"
        f" {max(differences):.0e}; {seconds / len(images):.2f} s an image"
    )
    is_compared = family_name not in IN_BFLOAT16
    return [
        Claim("prompt tokens", _status(all(counts)), f"as many as qwendet's on {sum(counts)} {of}"),
        Claim("limits", _status(all(kept)), f"shrinks large images as qwendet does, {sum(kept)} {of}"),
        Claim("text", _status(all(texts)), equal) if is_compared else Claim("text", "skip", NOT_COMPARED),
    ]


def _status(passed: bool) -> str:
    return "pass" if passed else "fail"


def commands(url: str, directory: Path, samples: Path) -> list[Claim]:
    """What `qwendet check-served` and `qwendet eval --server` say of a trained model."""
    results, _ = run_served_checks(url, directory, data=samples, overrides=ON_CPU)
    claims = [Claim(result.id, result.status, result.what) for result in results]
    by_server = evaluate_model(directory, samples, mode="text", server=url, overrides=ON_CPU)
    by_checkpoint = evaluate_model(directory, samples, mode="text", overrides=ON_CPU)
    (found,), (wanted,) = by_server.runs, by_checkpoint.runs
    same = found.answers == wanted.answers
    pairs = [(found.metrics[name], value) for name, value in wanted.metrics.items()]
    off = max(abs(one - other) for one, other in pairs if one is not None and other is not None)
    told = f"AP50 {found.metrics['AP50']} of {len(by_server.samples)} images, metrics at most {off:.1e} off"
    return [*claims, Claim("eval --server", "pass" if same and off < MOST_METRIC_OFF else "fail", told)]


def check(family_name: str, vllm: Path, samples: Path, num_images: int, folder: Path) -> list[Claim]:
    """Export a family's model, serve it and compare."""
    directory = write_export(family_name, samples, folder)
    images = collect_samples([samples])[:num_images]
    with served(directory, vllm, folder / "vllm.log") as (url, seconds):
        loads = Claim("loads", "pass", f"answers after {seconds:.0f} s, a head lies in head/")
        compared = compare(url, directory, images, family_name)
        of_commands = commands(url, directory, samples) if family_name in TRAINED else []
        return [loads, *compared, *of_commands]


def main() -> int:
    """Print one line a claim; 1 if one fails."""
    arguments = parser(__doc__)
    arguments.add_argument("--vllm", type=Path, required=True, help="the command of vLLM's own environment")
    arguments.add_argument("--family", choices=sorted(FAMILIES), help="one family alone")
    arguments.add_argument("--images", type=int, default=16, help="asked about in each family")
    given = arguments.parse_args()
    figures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        samples = write_dataset(PRETRAIN, Path(place) / "images.jsonl", given.images, seed=3)
        for name in [given.family] if given.family else FAMILIES:
            folder = Path(place) / name
            folder.mkdir()
            try:
                claims = check(name, given.vllm, samples, given.images, folder)
            except OSError as error:  # an error of HTTP, no answer in time
                log = (folder / "vllm.log").read_text(encoding="utf-8")
                claims = [Claim("answers", "fail", f"{error}\n{log[-4000:]}")]
            for claim in claims:
                print(f"{claim.status}  {name:10}  {claim.name}: {claim.found}", flush=True)
                figures[f"{name}/{claim.name}"] = f"{claim.status}: {claim.found}"
    print(machine())
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return int(any(value.startswith("fail") for value in figures.values()))


if __name__ == "__main__":
    raise SystemExit(main())
