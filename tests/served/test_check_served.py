"""Faults of a server, each planted into one that serves the tiny model, and each named by its check."""

from __future__ import annotations

import copy
import math
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from benchmarks.worlds import PRETRAIN
from qwendet.checks.ids import SERVED, chosen
from qwendet.checks.runner import run_checks
from qwendet.checks.served.observed import Observed
from qwendet.checks.served.pictures import calibration_samples
from qwendet.config.load import override_config
from qwendet.data.samples import Sample, SampleFile
from qwendet.demo.shapes import write_dataset
from qwendet.demo.tiny import ASSETS
from qwendet.errors import Result
from qwendet.families.qwen2_5_vl import QWEN2_5_VL
from qwendet.files import atomic_folder
from qwendet.inference.chat_server import ChatServer
from qwendet.inference.predictor import Predictor
from qwendet.loader import load
from qwendet.loading.checkpoint import save_checkpoint
from qwendet.loading.processor import load_processor
from tests.served.stand_in import StandIn, serving

pytestmark = pytest.mark.slow
TINY = ASSETS / "tiny"
MOST_TOKENS = 70


def asked(folder: Path, dtype: str, scenes: int) -> tuple[Predictor, list[Sample]]:
    """The checkpoint, and what it is asked about."""
    settings = [f"model.dtype={dtype}", "model.device=cpu", f"infer.max_new_tokens={MOST_TOKENS}"]
    predictor = Predictor.from_checkpoint(TINY, overrides=settings)
    samples = calibration_samples(folder, predictor.encoder.limits)
    samples += SampleFile(write_dataset(PRETRAIN, folder / "scenes.jsonl", scenes, seed=5))
    return predictor, samples


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """The checkpoint and what it answers, beside a sound server."""
    predictor, samples = asked(tmp_path_factory.mktemp("calibration"), "float32", 1)
    stand_in = StandIn(predictor.bundle.detector.vlm, predictor.bundle.processor)
    with serving(stand_in) as url:
        observed = Observed(predictor, find(predictor, url), samples, TINY)
        observed.own, observed.items  # noqa: B018  # the checkpoint answers once for all tests
        yield observed


def find(predictor: Predictor, url: str) -> ChatServer:
    return ChatServer.find(url, predictor.bundle)


@contextmanager
def beside(sound: Observed, **fault: Any) -> Iterator[Observed]:
    """The same checkpoint beside a server with a fault."""
    bundle = sound.predictor.bundle
    stand_in = replace(StandIn(bundle.detector.vlm, bundle.processor), **fault)
    with serving(stand_in) as url:
        observed = Observed(sound.predictor, find(sound.predictor, url), sound.samples, TINY)
        vars(observed)["own"], vars(observed)["items"] = sound.own, sound.items
        yield observed


def checked(observed: Observed, *ids: str) -> list[Result]:
    return run_checks(chosen(SERVED, ids), observed, ())[0]


def test_sound__passes_everything(sound: Observed) -> None:
    results = checked(sound)
    assert [(result.id, result.status, result.what) for result in results if result.status != "pass"] == []
    assert sound.tells_log_probs
    assert max(sound.misfits.values()) < 1e-3


def test_sound__without_log_probabilities_and_ids_passes_too(sound: Observed) -> None:
    with beside(sound, tells=()) as observed:
        results = checked(observed)
    assert {result.status for result in results} == {"pass"}
    assert "without log-probabilities" in results[0].what


def of_limits(low: int, high: int) -> Any:
    return load_processor(str(TINY), QWEN2_5_VL, low, high)


def twice(image: Image.Image) -> Image.Image:
    height, width = smart_resize(image.height, image.width, 32, 3136, 50_176)
    return image.resize((width, height))


def blurred(image: Image.Image) -> Image.Image:
    half = image.resize((max(1, image.width // 2), max(1, image.height // 2)))
    return half.resize(image.size)


def without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if message["role"] != "system"]


def in_thousandths(text: str) -> str:
    """Boxes rewritten, as by a client of another family."""

    def scaled(match: re.Match[str]) -> str:
        x1, y1, x2, y2 = map(int, match.group(1).split(","))
        width, height = SIZES[0]
        box = [
            round(x1 * 1000 / width),
            round(y1 * 1000 / height),
            round(x2 * 1000 / width),
            round(y2 * 1000 / height),
        ]
        return "[" + ", ".join(map(str, box)) + "]"

    return re.sub(r"\[(\d+, ?\d+, ?\d+, ?\d+)\]", scaled, text)


SIZES: list[tuple[int, int]] = []


class Swapping:
    """Holds answers that come together back, and gives each the other's."""

    def __init__(self) -> None:
        self.held: list[dict[str, Any]] = []
        self.pairs = threading.Condition()
        self.open = 0

    def __call__(self, own: StandIn, body: dict[str, Any]) -> Any:
        with self.pairs:
            self.open += 1
        reply = own.complete(body)
        with self.pairs:
            if self.open > 1:
                self.held.append(reply)
                self.pairs.notify_all()
                self.pairs.wait_for(lambda: len(self.held) > 1 or self.open == 1, timeout=10)
                reply = next((other for other in self.held if other is not reply), reply)
                if reply in self.held:
                    self.held.remove(reply)
            self.open -= 1
        return (reply,)


def other_weights(vlm: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    changed = copy.deepcopy(vlm)
    with torch.no_grad():
        for name, weight in changed.named_parameters():
            if name.endswith("weight") and weight.ndim == 2:
                weight.copy_(change(weight))
    return changed


def noisy(weight: torch.Tensor) -> torch.Tensor:
    made = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return weight + made * weight.std() * 0.3


def in_8_bits(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(-1, keepdim=True) / 127
    return (weight / scale).round() * scale


Fault = tuple[str, dict[str, Any], str, str]
FAULTS: list[Fault] = [
    (
        "fewer pixels",
        {"processor": lambda: of_limits(3136, 20_000)},
        "served.resize",
        "max_pixels is about",
    ),
    (
        "more pixels at least",
        {"processor": lambda: of_limits(25_000, 50_176)},
        "served.images",
        "min_pixels is about",
    ),
    (
        "resized to multiples of 32 first",
        {"image": twice},
        "served.images",
        "first to multiples of 32 pixels",
    ),
    (
        "resized to half and back",
        {"image": blurred},
        "served.weights",
        "the images arrive with other pixels",
    ),
    (
        "system text dropped",
        {"messages": without_system},
        "served.template",
        "the system text is left out",
    ),
    (
        "empty thought",
        {"prompt": lambda text: text + "<think>\n\n</think>\n\n"},
        "served.template",
        "an empty thought stands",
    ),
    (
        "template edited",
        {"prompt": lambda text: text.replace("user\n", "user:\n")},
        "served.template",
        "another chat template",
    ),
    (
        "temperature",
        {"settings": {"do_sample": True, "temperature": 3.0, "top_k": 0}},
        "served.greedy",
        "the server samples",
    ),
    (
        "repetition penalty",
        {"settings": {"repetition_penalty": 1.6}},
        "served.greedy",
        "a repetition penalty",
    ),
    (
        "other weights",
        {"vlm": noisy},
        "served.weights",
        "the server has other weights",
    ),
    (
        "eight bits",
        {"vlm": in_8_bits},
        "served.weights",
        "another precision than float32, or with quantized weights",
    ),
    (
        "bfloat16",
        {"vlm": None},
        "served.weights",
        "the server computes in bfloat16, the checkpoint in float32",
    ),
    ("cut", {"most_tokens": 12}, "served.end", "the answer is cut"),
    ("going on", {"answer": lambda text: text + "\nuser"}, "served.end", "goes on behind the end"),
    ("stop word", {"answer": lambda text: text[: len(text) // 2]}, "served.end", "the answer ends early"),
    ("context too short", {"max_model_len": 64}, "served.model", "but the server holds 64"),
    ("NaN", {"log_prob": lambda nats: math.nan}, "served.weights", "log-probabilities are not finite"),
    ("other frame", {"answer": in_thousandths}, "served.boxes", "the boxes are in thousandths"),
]


@pytest.mark.parametrize(
    ("fault", "id", "words"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_fault__is_named(sound: Observed, fault: dict[str, Any], id: str, words: str) -> None:
    vlm = sound.predictor.bundle.detector.vlm
    if "processor" in fault:
        fault = {"processor": fault["processor"]()}
    if "vlm" in fault:
        change = fault["vlm"]
        fault = {
            "vlm": copy.deepcopy(vlm).to(torch.bfloat16) if change is None else other_weights(vlm, change)
        }
    patch = sound.predictor.bundle.processor.image_processor.patch_size
    _, rows, columns = sound.items[-1].image_grid_thw[0].tolist()
    SIZES[:] = [(columns * patch, rows * patch)]
    with beside(sound, **fault) as observed:
        results = checked(observed, id)
    failed = [result for result in results if result.status == "fail"]
    assert failed, results
    assert any(words in result.what for result in failed), failed
    assert failed[0].fix


@pytest.fixture(scope="module")
def in_half(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """The checkpoint in bfloat16 and what it answers."""
    predictor, samples = asked(tmp_path_factory.mktemp("half"), "bfloat16", 4)
    with serving(StandIn(predictor.bundle.detector.vlm, predictor.bundle.processor)) as url:
        return Observed(predictor, find(predictor, url), samples, TINY)


def eager(vlm: Any) -> Any:
    """Other kernels, which round at other places."""
    other = copy.deepcopy(vlm)
    other.set_attn_implementation("eager")
    return other


@pytest.mark.parametrize(
    ("change", "share", "words"),
    [
        (eager, 1.0, ""),
        (lambda vlm: copy.deepcopy(vlm).float(), 0.0, "the server rounds less than bfloat16, as float32"),
        (
            lambda vlm: other_weights(vlm, lambda weight: in_8_bits(weight.float()).to(weight.dtype)),
            1.45,
            "the server's weights are quantized",
        ),
    ],
    ids=["other kernels", "float32", "eight bits"],
)
def test_half_precision__is_held_against_its_own_rounding(
    in_half: Observed, change: Callable[[Any], Any], share: float, words: str
) -> None:
    """The worst token is within the tolerance in all three; the mean over all tokens tells them apart."""
    with beside(in_half, vlm=change(in_half.predictor.bundle.detector.vlm)) as observed:
        vars(observed)["in_other_precision"] = in_half.in_other_precision
        (result,) = checked(observed, "served.weights")
    assert max(observed.misfits.values()) < observed.tolerance
    assert observed.share_of_rounding == pytest.approx(share, abs=0.16)
    assert (result.status, words in result.what) == ("fail" if words else "pass", True), result.what


def test_swapped_answers__are_named(sound: Observed) -> None:
    with beside(sound, respond=Swapping()) as observed:
        results = checked(observed, "served.order")
    assert results[0].status == "fail"
    assert "it gets the answer to" in results[0].what


def test_stale_checkpoint_of_the_run__is_named(sound: Observed, tmp_path: Path) -> None:
    """The checkpoint beside the served one is recognised by what it answers."""
    bundle = sound.predictor.bundle
    changed = copy.deepcopy(bundle.detector)
    changed.vlm = other_weights(changed.vlm, noisy)
    save_checkpoint(tmp_path / "checkpoint-50", changed, bundle.processor, bundle.config, step=50)
    shutil.copytree(TINY, tmp_path / "final")
    with beside(sound, vlm=changed.vlm) as observed:
        observed.checkpoint = tmp_path / "final"
        (result,) = checked(observed, "served.weights")
    assert result.status == "fail"
    assert f"the server answers as {tmp_path / 'checkpoint-50'} does" in result.what


def test_answers_whose_tokens_are_not_known__are_a_skip_and_no_pass(sound: Observed) -> None:
    """The server has other weights, and its answers cannot be read back: nothing was compared."""
    vlm = other_weights(sound.predictor.bundle.detector.vlm, noisy)
    with beside(sound, vlm=vlm, answer=lambda text: text + "\u00e9" * 3) as observed:
        (result,) = checked(observed, "served.weights")
    assert (result.status, result.what) == (
        "skip",
        "no answer of the server can be read back into its tokens",
    )


@pytest.mark.parametrize("tells", [("logprobs",), ()], ids=["log-probabilities", "text alone"])
def test_base_without_the_adapter__is_named(sound: Observed, tmp_path: Path, tells: tuple[str, ...]) -> None:
    """An adapter that changes the answers is the checkpoint; the server has its base alone."""
    bundle = sound.predictor.bundle
    lora = ["model.lora.rank=4", "model.lora.targets=all"]
    trained = load(override_config(bundle.config, lora), for_inference=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in trained.detector.vlm.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    with atomic_folder(tmp_path / "final") as folder:
        save_checkpoint(folder, trained.detector, trained.processor, trained.config, step=1)
    predictor = Predictor.from_checkpoint(tmp_path / "final")
    with serving(StandIn(bundle.detector.vlm, bundle.processor, tells=tells)) as url:
        observed = Observed(predictor, find(predictor, url), sound.samples, tmp_path / "final")
        (result,) = checked(observed, "served.weights")
    assert result.status == "fail"
    assert "the server answers as the base without the adapter" in result.what
    with serving(StandIn(predictor.bundle.detector.vlm, bundle.processor, tells=tells)) as url:
        observed = Observed(predictor, find(predictor, url), sound.samples, tmp_path / "final")
        (result,) = checked(observed, "served.weights")
    assert result.status == "pass", result.what
