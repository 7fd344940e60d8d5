"""`qwendet export`: a plain directory that says the same without qwendet, or nothing at all."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import qwendet.export.directory
from qwendet.config.schema import Config
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.encoding.prompts import request_text
from qwendet.errors import CheckpointError, ConfigError
from qwendet.export.directory import export
from qwendet.inference.inputs import sample_of_image
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle, load
from qwendet.loading.lora import is_adapter
from qwendet.loading.manifest import files_of, read_manifest
from tests.commands import Qwendet

HEAD = "head/detection_head.safetensors"
MakeConfig = Callable[..., Config]
SaveBundle = Callable[[Bundle, Path], Path]

# What a user writes who has transformers alone. PIL is named because torchvision resizes to other pixels.
PLAIN = """
import json, sys
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

folder, image, system, request = sys.argv[1:]
model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
    folder, dtype="auto", output_loading_info=True)
assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
tokenizer = AutoTokenizer.from_pretrained(folder)
pixels = Qwen2VLImageProcessorPil.from_pretrained(folder)(images=[Image.open(image)], return_tensors="pt")
text = tokenizer.apply_chat_template([
    {"role": "system", "content": [{"type": "text", "text": system}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": request}]},
], tokenize=False, add_generation_prompt=True)
tokens = int(pixels["image_grid_thw"].prod()) // 4
text = text.replace("<|image_pad|>", "<|image_pad|>" * tokens)
inputs = tokenizer(text, return_tensors="pt")
types = (inputs["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
answer = model.generate(**inputs, mm_token_type_ids=types, **pixels)[0, inputs["input_ids"].shape[1]:]
assert "qwendet" not in sys.modules
print(json.dumps([tokenizer.decode(answer, skip_special_tokens=True), str(model.dtype)]))
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(DEMO, folder / "val.jsonl", 1, seed=2)
    return folder / "images" / "val_00000.png"


@pytest.fixture(scope="module")
def adapter(
    make_config: MakeConfig, save_bundle: SaveBundle, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An adapter of the pre-trained model that says something, and what its run measured."""
    config = make_config(
        model={"path": "tiny", "dtype": "float32", "lora": {"rank": 4, "targets": "all"}},
        data={"labels": list(DEMO.labels)},
        detection={"hidden_size": None, "num_layers": None, "num_heads": None},
        infer={"max_new_tokens": 48},
    )
    bundle = load(config, for_inference=False)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in bundle.detector.named_parameters():
        if is_adapter(name):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    folder = save_bundle(bundle, tmp_path_factory.mktemp("run") / "final")
    (folder.parent / "metrics.json").write_text('{"head/AP50": 0.5}', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def exported(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter, merged, in files of at most 4 MB; read only."""
    output = tmp_path_factory.mktemp("out") / "model"
    summary = export(adapter, output, max_shard_size="4MB")
    assert summary.merge_error is not None
    assert 0 < summary.merge_error < 1e-5
    return output


def plain_answer(folder: Path, image: Path, config: Config) -> tuple[str, str]:
    request = request_text(config.data.request, config.data.labels or ())
    command = [sys.executable, "-c", PLAIN, str(folder), str(image), config.data.system_prompt, request]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    text, dtype = json.loads(done.stdout.splitlines()[-1])
    return text, dtype


def answer_of(folder: Path, image: Path) -> str:
    """The text that `qwendet infer --mode text` reads."""
    answer = Predictor.from_checkpoint(folder).predict_image(image, "text").answer
    assert answer is not None
    return answer.text


@pytest.mark.slow
def test_export__gives_the_same_text_in_transformers_alone(
    exported: Path, adapter: Path, scene: Path
) -> None:
    predictor = Predictor.from_checkpoint(adapter)
    text, dtype = plain_answer(exported, scene, predictor.bundle.config)
    assert text == answer_of(adapter, scene) == answer_of(exported, scene)
    assert len(text) > 20
    assert dtype == "torch.float32"


def test_export__is_a_whole_checkpoint_in_shards_with_a_card(exported: Path, adapter: Path) -> None:
    names = files_of(exported)
    shards = [name for name in names if name.startswith("model-")]
    assert len(shards) >= 2
    assert all((exported / name).stat().st_size < 4.5e6 for name in shards)
    assert [name for name in names if name not in shards] == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        HEAD,
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "qwendet.json",
        "serving.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    index = json.loads((exported / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert sorted(set(index["weight_map"].values())) == shards
    assert "serving.json" in read_manifest(exported).files
    card = (exported / "README.md").read_text(encoding="utf-8")
    trained = Predictor.from_checkpoint(adapter).bundle.config
    assert trained.model.lora is not None
    for wanted in (
        "| head/AP50 | 0.5000 |",
        trained.model.lora.fingerprint,
        "pixels of the image **as resized**",
    ):
        assert str(wanted) in card
    assert '"cyan cross"' in card
    served = Predictor.from_checkpoint(exported).bundle.config
    assert served.model.lora is None
    assert not any(
        is_adapter(name) for name, _ in Predictor.from_checkpoint(exported).bundle.detector.named_parameters()
    )


def test_export__head_detections_are_those_of_the_adapter(exported: Path, adapter: Path, scene: Path) -> None:
    found, wanted = (
        Predictor.from_checkpoint(folder).predict_image(scene, "head").detections
        for folder in (exported, adapter)
    )
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_export__in_another_type(dtype: str, saved: Path, tmp_path: Path) -> None:
    summary = export(saved, tmp_path / "out", dtype=dtype)
    assert (summary.dtype, summary.merge_error, summary.files) == (
        dtype,
        None,
        (HEAD, "model.safetensors"),
    )
    bundle = Predictor.from_checkpoint(tmp_path / "out").bundle
    assert {parameter.dtype for parameter in bundle.detector.vlm.parameters()} == {getattr(torch, dtype)}
    assert {parameter.dtype for parameter in bundle.detector.head.parameters()} == {torch.float32}
    assert bundle.config.train.autocast == {"bfloat16": "bf16", "float16": "fp16"}[dtype]


def test_export__of_an_export_changes_nothing(saved: Path, tmp_path: Path) -> None:
    export(saved, tmp_path / "one")
    export(tmp_path / "one", tmp_path / "two")
    for name in ("model.safetensors", HEAD, "tokenizer_config.json", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_export__tokenizer_settings_do_not_say_how_they_were_loaded(exported: Path) -> None:
    settings = json.loads((exported / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not {"is_local", "local_files_only"} & settings.keys()


# What is refused


def test_export__what_differs_after_reloading_leaves_nothing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_changed(*args: Any, **kwargs: Any) -> Bundle:
        bundle = load(*args, **kwargs)
        calls.append(bundle)
        if len(calls) == 2:
            with torch.no_grad():
                bundle.detector.vlm.model.visual.patch_embed.proj.weight[0, 0, 0, 0, 0] += 1
        return bundle

    calls: list[Bundle] = []
    monkeypatch.setattr(qwendet.export.directory, "load", load_changed)
    with pytest.raises(CheckpointError, match=r"patch_embed.proj.weight is not what was written"):
        export(saved, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_export__a_merge_that_is_more_than_rounding_is_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge_wrongly(vlm: torch.nn.Module) -> None:
        merge(vlm)
        with torch.no_grad():
            vlm.get_parameter("model.language_model.norm.weight").mul_(1.01)

    merge = qwendet.export.directory.merge_adapter
    monkeypatch.setattr(qwendet.export.directory, "merge_adapter", merge_wrongly)
    with pytest.raises(CheckpointError, match=r"the merged model's logits differ by 1\.0e-02 of their size"):
        export(adapter, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_export__an_existing_directory_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is something already"):
        export(saved, tmp_path)


def test_cli__says_what_was_written(saved: Path, tmp_path: Path, qwendet: Qwendet) -> None:
    ending = qwendet("export", saved, tmp_path / "out", "--dtype", "bfloat16")
    assert ending.code == 0, ending.err
    said = (ending.out + ending.err).replace("\n", " ")
    assert "parameters in bfloat16, 2 weight files, reloaded and compared" in said


# The client of docs/serving.md


def test_serving_client__sends_what_the_model_was_trained_on_and_maps_boxes_back(
    repo_root: Path, scene: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (repo_root / "docs" / "serving.md").read_text(encoding="utf-8")
    source = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.setitem(sys.modules, "openai", types.SimpleNamespace(OpenAI=lambda **kwargs: None))
    names: dict[str, Any] = {}
    exec(compile(source, "serving.md", "exec"), names)  # noqa: S102  # our own documentation
    wide = tmp_path / "wide.png"
    Image.open(scene).convert("RGB").resize((400, 100)).save(wide)
    bundle = Predictor.from_checkpoint(saved).bundle
    exported = export(saved, tmp_path / "model").output
    sent: dict[str, Any] = {}

    def answer(**request: Any) -> Any:
        sent.update(request)
        content = json.dumps([{"bbox_2d": [28, 28, 56, 84], "label": "a"}])
        message = types.SimpleNamespace(message=types.SimpleNamespace(content=content))
        return types.SimpleNamespace(choices=[message])

    completions = types.SimpleNamespace(completions=types.SimpleNamespace(create=answer))
    client = types.SimpleNamespace(chat=completions)
    found = names["detect"](wide, exported, client)
    data = bundle.config.data
    assert sent["messages"][0] == {"role": "system", "content": data.system_prompt}
    assert sent["messages"][1]["content"][1]["text"] == request_text(data.request, bundle.labels)
    sampling = {"temperature": 0, "max_tokens": bundle.config.infer.max_new_tokens}
    assert sent["extra_body"] == sampling | {"chat_template_kwargs": {}}
    item = bundle.encoder().encode(sample_of_image(wide), with_answer=False)
    _, rows, columns = item.image_grid_thw[0].tolist()
    url = sent["messages"][1]["content"][0]["image_url"]["url"]
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert picture.size == (columns * 14, rows * 14)
    (pixels,) = bundle.processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"][None]
    assert torch.equal(pixels, item.pixel_values), "pixel for pixel what qwendet shows the model"
    wanted = [
        28 * 400 / picture.width,
        28 * 100 / picture.height,
        56 * 400 / picture.width,
        84 * 100 / picture.height,
    ]
    assert found == [(pytest.approx(wanted), "a")]
