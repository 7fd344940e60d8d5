"""What a server reads of each family's export: limits, end of answers, launch lines, licence."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoImageProcessor, GenerationConfig

from qwendet.config.load import build_config
from qwendet.export.directory import ExportSummary, export
from qwendet.export.serving import VLLM_CPU_HEADS
from qwendet.families.choose import FAMILIES
from qwendet.families.licence import licence_of
from qwendet.files import atomic_folder
from qwendet.inference.predictor import Predictor
from qwendet.loader import load
from qwendet.loading.checkpoint import save_checkpoint

UNITS = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32, "qwen3_5": 32}
MODELS = {
    "qwen2_vl": "tiny-qwen2-vl", "qwen2_5_vl": "tiny-untrained",
    "qwen3_vl": "tiny-qwen3-vl-untrained", "qwen3_5": "tiny-qwen3-5",
}  # fmt: skip
LABELS = ("red cell", "it's <b>")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def export_of(path: str, folder: Path, **data: Any) -> ExportSummary:
    """An export of an untrained checkpoint, asked in its family's words."""
    values = {
        "model": {"path": path, "device": "cpu", "dtype": "float32"},
        "data": {"labels": list(LABELS), "max_tokens": 600, **data},
        "detection": {"hidden_size": 64, "num_layers": 2, "num_heads": 4},
        "infer": {"max_new_tokens": 100},
    }
    bundle = load(build_config(values, "test"), for_inference=False)
    with atomic_folder(folder / "checkpoint") as staging:
        save_checkpoint(staging, bundle.detector, bundle.processor, bundle.config, step=0)
    return export(folder / "checkpoint", folder / "cells model")


@pytest.fixture(scope="module", params=UNITS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family's name and an export of it; read only."""
    family: str = request.param
    unit = UNITS[family]
    limits = {"min_pixels": 9 * unit**2, "max_pixels": 36 * unit**2}
    return family, export_of(MODELS[family], tmp_path_factory.mktemp(family), **limits).output


def test_export__has_the_limits_by_every_name(exported: tuple[str, Path]) -> None:
    family, folder = exported
    least, most = 9 * UNITS[family] ** 2, 36 * UNITS[family] ** 2
    facts, serving = read(folder / "preprocessor_config.json"), read(folder / "serving.json")
    assert (facts["min_pixels"], facts["max_pixels"]) == (least, most)
    assert facts["size"] == {"shortest_edge": least, "longest_edge": most}
    size = AutoImageProcessor.from_pretrained(folder, backend="pil").size
    assert (size["shortest_edge"], size["longest_edge"]) == (least, most)
    assert (serving["min_pixels"], serving["max_pixels"], serving["factor"]) == (least, most, UNITS[family])
    loaded = Predictor.from_checkpoint(folder).bundle
    assert (loaded.config.data.min_pixels, loaded.config.data.max_pixels) == (least, most)


@pytest.mark.parametrize("pattern", ["*.safetensors", "model*.safetensors", "*.bin", "*.pt"])
def test_export__no_loader_finds_the_head(exported: tuple[str, Path], pattern: str) -> None:
    """vLLM and SGLang read all weights beside config.json, llama.cpp's converter model*; none goes deeper."""
    _, folder = exported
    for path in folder.glob(pattern):
        with safe_open(path, "pt") as weights:
            assert {name.partition(".")[0] for name in weights.keys()} <= {"model", "visual", "lm_head"}  # noqa: SIM118
    assert len(list(folder.glob(pattern))) == (1 if "safetensors" in pattern else 0)


def test_export__ends_at_the_end_of_a_turn(exported: tuple[str, Path]) -> None:
    _, folder = exported
    settings = GenerationConfig.from_pretrained(folder)
    tokenizer = Predictor.from_checkpoint(folder).bundle.processor.tokenizer
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in settings.eos_token_id
    assert (settings.do_sample, settings.max_new_tokens) == (False, 100)


def test_serving__tells_what_is_sent_and_how_boxes_are_read(exported: tuple[str, Path]) -> None:
    name, folder = exported
    serving, family = read(folder / "serving.json"), FAMILIES[name]
    assert (serving["family"], serving["frame"], serving["answer_form"]) == (
        name,
        family.frame,
        family.answer_form,
    )
    assert (serving["dtype"], serving["resizer"], serving["licence"]) == ("float32", "pil", "Apache-2.0")
    assert (serving["system"], tuple(serving["labels"])) == (family.system_prompt, LABELS)
    assert "red cell, it's <b>" in serving["request"]
    wanted = {"temperature": 0, "max_tokens": 100}
    assert serving["sampling"] == (wanted | {"skip_special_tokens": False} if name == "qwen2_vl" else wanted)
    assert serving["chat_template_kwargs"] == dict(family.template_settings)


def test_serving__launch_lines_are_the_servers_own_words(exported: tuple[str, Path]) -> None:
    name, folder = exported
    serving = read(folder / "serving.json")
    least, most = serving["min_pixels"], serving["max_pixels"]
    size = {"shortest_edge": least, "longest_edge": most}
    vllm, sglang = shlex.split(serving["vllm"]), shlex.split(serving["sglang"])
    assert vllm[:5] == ["vllm", "serve", ".", "--served-model-name", "cells model"]
    options = dict(zip(vllm[3::2], vllm[4::2], strict=True))
    assert (options["--dtype"], options["--max-model-len"]) == ("float32", "700")
    assert json.loads(options["--limit-mm-per-prompt"]) == {"image": 1}
    assert json.loads(options["--mm-processor-kwargs"]) == {"size": size}
    assert json.loads(options["--override-generation-config"]) == {"temperature": 0}
    thinking = {"enable_thinking": False, "preserve_thinking": False}
    found = json.loads(options.get("--default-chat-template-kwargs", "{}"))
    assert found == (thinking if name == "qwen3_5" else {})
    assert sglang[:6] == [
        f"SGLANG_IMAGE_MAX_PIXELS={most}", "python", "-m", "sglang.launch_server", "--model-path", ".",
    ]  # fmt: skip
    options = dict(zip(sglang[6::2], sglang[7::2], strict=True))
    assert json.loads(options["--limit-mm-data-per-request"]) == {"image": 1}
    assert json.loads(options["--mm-process-config"]) == {"image": {"size": size}}


def test_serving__tells_what_vllm_cannot_do_on_a_cpu(exported: tuple[str, Path]) -> None:
    name, folder = exported
    heads = f"not for vLLM on a CPU: heads of 40, its kernels take {', '.join(map(str, VLLM_CPU_HEADS))}"
    wanted = {
        "qwen2_vl": [heads],
        "qwen2_5_vl": [heads],
        "qwen3_vl": [],
        "qwen3_5": [
            "no mtp.*: a server cannot draft with them",
            "not for vLLM on a CPU: it computes recurrent layers in bfloat16 alone",
        ],
    }
    assert read(folder / "serving.json")["limits"] == wanted[name]


def test_card__tells_frame_form_licence_and_launch(exported: tuple[str, Path]) -> None:
    name, folder = exported
    card = (folder / "README.md").read_text(encoding="utf-8")
    serving = read(folder / "serving.json")
    by = "width over resized width" if name == "qwen2_5_vl" else "width over 1000"
    assert f"# A {FAMILIES[name].name} object detector" in card
    assert f"multiply x by displayed {by}, and y likewise" in card
    assert ("<|box_start|>(x1,y1),(x2,y2)<|box_end|>" in card) == (name == "qwen2_vl")
    assert ('The template is given `{"enable_thinking": false, "preserve_thinking": false}`.' in card) == (
        name == "qwen3_5"
    )
    assert ("| left out | mtp.*, which transformers does not load |" in card) == (name == "qwen3_5")
    assert ModelCard(card).data.license == "apache-2.0"
    assert serving["vllm"] in card
    assert serving["sglang"] in card


def test_export__demonstrations_are_images_of_a_request(tmp_path: Path) -> None:
    summary = export_of("tiny-untrained", tmp_path, teacher_ratio=0.5, num_teachers=2)
    assert """--limit-mm-per-prompt '{"image": 3}'""" in read(summary.output / "serving.json")["vllm"]
    place = shlex.quote(str(summary.output))
    assert summary.launch.startswith(f"vllm serve {place} --served-model-name 'cells model' --dtype float32 ")


# Licences


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / {"card": "README.md", "text": "LICENSE"}[name]).write_text(text, encoding="utf-8")
    return folder


CARD = "---\nlicense: {}\n---\n# A model"


@pytest.mark.parametrize(
    ("path", "files", "licence"),
    [
        ("tiny", {}, "Apache-2.0"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", {}, "Qwen Research, non-commercial"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", {}, "Apache-2.0"),
        ("me/cells", {}, ""),
        ("folder", {"card": CARD.format("mit")}, "mit"),
        ("folder", {"card": CARD.format("other\nlicense_name: qwen-research")}, "qwen-research"),
        ("folder", {"text": "\n   Apache License\n   Version 2.0\n"}, "Apache License"),
        ("folder", {"card": "# no front matter\nlicense: mit\n", "text": ""}, ""),
        ("folder", {"card": CARD.format("[mit")}, ""),
        ("folder", {"card": CARD.format('"a\\nb: \\u001b[31m"')}, "a b:  [31m"),
        ("folder", {"card": CARD.format("x" * 100)}, "x" * 80),
    ],
)
def test_licence__is_the_folders_own_else_the_publishers(
    path: str, files: dict[str, str], licence: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, **files) if files else None
    assert licence_of(path, folder, FAMILIES["qwen2_5_vl"]) == licence


def test_export__names_the_licence_of_a_folder_and_keeps_it(
    tmp_path: Path, plain_base: Callable[[str], Path]
) -> None:
    one = export_of(str(plain_base(CARD.format("other\nlicense_name: cells-only"))), tmp_path).output
    assert read(one / "serving.json")["licence"] == "cells-only"
    front = ModelCard.load(one / "README.md").data
    assert (front.license, front.license_name) == ("other", "cells-only")
    two = export(one, tmp_path / "two").output
    assert read(two / "serving.json")["licence"] == "cells-only"
    unknown = export_of(str(plain_base("")), tmp_path / "b").output
    assert read(unknown / "serving.json")["licence"] == "unknown, see the base"
    assert "license" not in (unknown / "README.md").read_text(encoding="utf-8").partition("\n# ")[0]


@pytest.fixture
def plain_base(tmp_path: Path) -> Callable[[str], Path]:
    """A model of a folder, with a card."""
    from shutil import copytree

    from qwendet.demo.tiny import write_untrained

    def make(card: str) -> Path:
        folder = Path(copytree(write_untrained(), tmp_path / f"base{len(card)}"))
        return write(folder, card=card)

    return make
