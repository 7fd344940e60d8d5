"""Checkpoints: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

import qwendet.loader
from qwendet.config.schema import Config
from qwendet.errors import CheckpointError, DataError
from qwendet.families.qwen2_5_vl import QWEN2_5_VL
from qwendet.files import atomic_file, atomic_folder, find_folder, sha256_of_file
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle, config_of_checkpoint, load, restore
from qwendet.loading.checkpoint import describe_parameters, sha256_of_tensor, verify_parameters
from qwendet.loading.manifest import files_of, read_manifest, verify_files
from qwendet.model.precision import group_of

MakeConfig = Callable[..., Config]
SaveBundle = Callable[[Bundle, Path], Path]
EditManifest = Callable[[Path, Callable[[dict[str, Any]], Any]], None]
EditWeights = Callable[[Path, Callable[[dict[str, Tensor]], Any]], None]

MODEL = "model.safetensors"
UNKNOWN = "the manifest does not know this file (remove it)"
HEAD = "head/detection_head.safetensors"
OLD_HEAD = "detection_head.safetensors"


def load_for_inference(folder: Path) -> Bundle:
    return load(config_of_checkpoint(folder), for_inference=True)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_for_inference(folder)
    return str(caught.value)


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def assert_same_weights(found: torch.nn.Module, wanted: torch.nn.Module) -> None:
    found_state, wanted_state = (
        model.state_dict() | dict(model.named_buffers()) for model in (found, wanted)
    )
    assert list(found_state) == list(wanted_state)
    for name, tensor in wanted_state.items():
        assert found_state[name].dtype == tensor.dtype, name
        assert torch.equal(found_state[name], tensor), name


# What is saved


def test_save_and_load__every_parameter_is_bitwise_the_same(saved: Path, bundle: Bundle) -> None:
    assert_same_weights(load_for_inference(saved).detector, bundle.detector)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_save_and_load__every_parameter_is_bitwise_the_same_in_other_types(
    dtype: str, make_config: MakeConfig, save_bundle: SaveBundle, tmp_path: Path
) -> None:
    built = load(make_config(model={"dtype": dtype}), for_inference=False)
    with torch.no_grad():
        for parameter in built.detector.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64).to(parameter.dtype) * 0.01)
    found = load_for_inference(save_bundle(built, tmp_path / "final"))
    wanted = torch.promote_types(getattr(torch, dtype), torch.float32)
    assert {parameter.dtype for parameter in found.detector.parameters()} == {wanted}, "all are trained"
    assert_same_weights(found.detector, built.detector)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_save_and_load__trained_weights_are_float32_and_frozen_ones_as_the_config_says(
    dtype: str, make_config: MakeConfig, save_bundle: SaveBundle, tmp_path: Path
) -> None:
    frozen = {"vision_learning_rate": 0.0, "language_learning_rate": 0.0}
    built = load(make_config(model={"dtype": dtype}, train=frozen), for_inference=False)
    found = load_for_inference(save_bundle(built, tmp_path / "final"))
    for bundle in (built, found):
        for name, parameter in bundle.detector.named_parameters():
            is_trained = group_of(name, QWEN2_5_VL) in ("merger", "head")
            assert parameter.dtype == (torch.float32 if is_trained else getattr(torch, dtype)), name
    assert_same_weights(found.detector, built.detector)


@pytest.mark.parametrize(
    ("trained", "asked", "autocast"), [("float32", "bfloat16", "bf16"), ("bfloat16", "float32", "none")]
)
def test_load__a_type_that_is_asked_for_is_that_of_all_weights_and_products(
    trained: str, asked: str, autocast: str, make_config: MakeConfig, save_bundle: SaveBundle, tmp_path: Path
) -> None:
    config = make_config(model={"dtype": trained}, train={"vision_learning_rate": 0.0})
    saved = save_bundle(load(config, for_inference=False), tmp_path / "final")
    found = Predictor.from_checkpoint(saved, overrides=[f"model.dtype={asked}"]).bundle
    assert {parameter.dtype for parameter in found.detector.vlm.parameters()} == {getattr(torch, asked)}
    assert found.detector.head is not None
    assert {parameter.dtype for parameter in found.detector.head.parameters()} == {torch.float32}
    assert found.config.train.autocast == autocast


def test_load__an_older_checkpoint_with_a_removed_setting_whose_autocast_was_that_of_training_alone(
    make_config: MakeConfig, save_bundle: SaveBundle, edit_manifest: EditManifest, tmp_path: Path
) -> None:
    train = {"weights": "bfloat16", "optimizer": "stable_adamw"}
    built = load(make_config(model={"dtype": "bfloat16"}, train=train), for_inference=False)
    folder = save_bundle(built, tmp_path / "final")

    def as_before(manifest: dict[str, Any]) -> None:
        del manifest["config"]["train"]["weights"]
        manifest["config"]["train"] |= {"autocast": "none", "optimizer": "adamw_torch"}
        manifest["config"]["data"] |= {"image_cache": None, "image_cache_gigabytes": 10.0}

    edit_manifest(folder, as_before)
    found = load_for_inference(folder)
    assert found.config.train.autocast == "bf16"
    assert {parameter.dtype for parameter in found.detector.vlm.parameters()} == {torch.bfloat16}
    assert_same_weights(found.detector, built.detector)


def test_save_and_load__labels_limits_and_prompts_come_back(saved: Path, bundle: Bundle) -> None:
    found = load_for_inference(saved)
    assert found.labels == ("orange star", "blue square")
    assert found.config.data.request == "Find {labels}."
    assert found.config.data.system_prompt == bundle.config.data.system_prompt
    assert (found.config.data.min_pixels, found.config.data.max_pixels) == (56 * 56, 224 * 224)
    size = found.processor.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (56 * 56, 224 * 224)
    assert found.processor.chat_template == bundle.processor.chat_template
    assert found.processor.tokenizer.padding_side == "left"
    assert found.config.detection == bundle.config.detection


def test_save_and_load__evaluation_mode_without_dropout_or_gradients_needed(saved: Path) -> None:
    assert not any(module.training for module in load_for_inference(saved).detector.modules())


def test_save__files_are_a_plain_hugging_face_directory_with_head_and_manifest(saved: Path) -> None:
    assert files_of(saved) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        HEAD,
        MODEL,
        "preprocessor_config.json",
        "qwendet.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]


def test_save__tied_weights_are_stored_once_and_the_model_file_knows_no_head(saved: Path) -> None:
    with safe_open(saved / MODEL, "pt") as file:
        names = list(file.keys())
    assert "model.embed_tokens.weight" in names
    assert [name for name in names if name.startswith(("lm_head", "head", "vlm"))] == []


def test_save__manifest_says_what_the_checkpoint_is(saved: Path, bundle: Bundle) -> None:
    record = json.loads((saved / "qwendet.json").read_text(encoding="utf-8"))
    assert (record["format_version"], record["loss_version"], record["step"]) == (1, 1, 7)
    assert record["padding_side"] == "left"
    assert record["coordinates"] == "xyxy integers, pixels of the model's image"
    assert record["resizer"] == "pil"
    assert (record["dtype"], record["attn_implementation"]) == ("float32", "sdpa")
    assert (record["min_pixels"], record["max_pixels"]) == (56 * 56, 224 * 224)
    assert record["config"]["data"]["labels"] == ["orange star", "blue square"]
    sizes = {"vision_size": 128, "text_size": 160, "hidden_size": 64, "num_layers": 2, "num_heads": 4}
    assert record["head"] == sizes
    assert record["versions"].keys() == {"python", "torch", "transformers", "safetensors", "pillow", "numpy"}
    assert record["files"] == {
        name: sha256_of_file(saved / name) for name in files_of(saved) if name != "qwendet.json"
    }
    parameters = dict(bundle.detector.named_parameters())
    assert record["parameters"].keys() == parameters.keys()
    for name, tensor in parameters.items():
        wanted = {"shape": list(tensor.shape), "dtype": "float32", "sha256": sha256_of_tensor(tensor)}
        assert record["parameters"][name] == wanted


def test_read_manifest__returns_what_was_written(saved: Path, bundle: Bundle) -> None:
    manifest = read_manifest(saved)
    assert manifest.config == bundle.config
    assert manifest.config.data.labels == bundle.labels
    assert bundle.detector.head is not None
    assert manifest.head == bundle.detector.head.shape
    assert manifest.parameters == describe_parameters(bundle.detector)


def test_save__without_detection_there_is_no_head_file_and_no_head_key(
    make_config: MakeConfig, save_bundle: SaveBundle, tmp_path: Path
) -> None:
    built = load(make_config(detection={"enabled": False}), for_inference=False)
    folder = save_bundle(built, tmp_path / "final")
    manifest = read_manifest(folder)
    assert built.detector.head is None
    assert manifest.head is None
    assert not (folder / HEAD).exists()
    assert [name for name in manifest.parameters if "head." in name] == []
    assert [name for name in manifest.files if "head" in name] == []
    assert load_for_inference(folder).detector.head is None


def test_save__twice_gives_the_same_bytes(saved: Path, save_bundle: SaveBundle, tmp_path: Path) -> None:
    again = save_bundle(load_for_inference(saved), tmp_path / "again")
    wanted, found = (read_manifest(folder) for folder in (saved, again))
    assert found.parameters == wanted.parameters
    assert found.files == wanted.files


# Where the head is


def move_head_beside(folder: Path, edit_manifest: EditManifest) -> Path:
    """The layout of earlier versions: the head's file beside the model's."""
    (folder / HEAD).rename(folder / OLD_HEAD)
    (folder / HEAD).parent.rmdir()
    edit_manifest(folder, lambda record: record["files"].update({OLD_HEAD: record["files"].pop(HEAD)}))
    return folder


def test_save__no_other_weights_lie_where_servers_look(saved: Path) -> None:
    """vLLM's default loader reads ``glob(folder + "/*.safetensors")``, whatever the files are called."""
    assert [path.name for path in saved.glob("*.safetensors")] == [MODEL]
    _, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_load__a_checkpoint_with_the_head_beside_the_model_gives_the_same(
    checkpoint: Path, bundle: Bundle, edit_manifest: EditManifest
) -> None:
    found = load_for_inference(move_head_beside(checkpoint, edit_manifest))
    assert_same_weights(found.detector, bundle.detector)


def test_load__of_two_heads_the_one_that_nobody_vouches_for_is_refused(
    checkpoint: Path, edit_manifest: EditManifest
) -> None:
    shutil.copy(checkpoint / HEAD, checkpoint / OLD_HEAD)
    assert refusal(checkpoint) == f"{checkpoint / OLD_HEAD}: {UNKNOWN}"
    (checkpoint / OLD_HEAD).unlink()
    move_head_beside(checkpoint, edit_manifest)
    (checkpoint / HEAD).parent.mkdir()
    shutil.copy(checkpoint / OLD_HEAD, checkpoint / HEAD)
    assert refusal(checkpoint) == f"{checkpoint / HEAD}: {UNKNOWN}"


def test_sha256_of_tensor__depends_on_values_not_on_strides() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    assert sha256_of_tensor(matrix.T) == sha256_of_tensor(matrix.T.contiguous())
    assert sha256_of_tensor(matrix.T) != sha256_of_tensor(matrix)
    assert len(sha256_of_tensor(torch.tensor(1.5, dtype=torch.bfloat16))) == 64


# What is refused


def test_load__without_a_manifest__inference_is_refused(checkpoint: Path) -> None:
    (checkpoint / "qwendet.json").unlink()
    message = refusal(checkpoint)
    assert "the checkpoint has no manifest (qwendet.json)" in message
    assert str(checkpoint) in message
    assert "retrain, because" in message


def test_load__no_such_folder(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'}: there is no such checkpoint" in refusal(tmp_path / "none")


@pytest.mark.parametrize(
    ("file", "key", "named"),
    [
        pytest.param(MODEL, "model.norm.weight", "model.language_model.norm.weight", id="language"),
        pytest.param(MODEL, "visual.merger.mlp.0.bias", "model.visual.merger.mlp.0.bias", id="merger"),
        pytest.param(MODEL, "model.embed_tokens.weight", "2 missing keys, such as lm_head.weight", id="tied"),
        pytest.param(HEAD, "norm.weight", "the head's weight norm.weight is missing", id="head"),
    ],
)
def test_load__a_missing_key_is_named(
    file: str, key: str, named: str, checkpoint: Path, edit_weights: EditWeights
) -> None:
    edit_weights(checkpoint / file, lambda tensors: tensors.pop(key))
    message = refusal(checkpoint)
    assert "missing" in message.lower()
    assert named in message


@pytest.mark.parametrize(
    ("file", "key", "words"),
    [
        pytest.param(MODEL, "model.extra.weight", ("unexpected", "extra.weight"), id="extra, model"),
        pytest.param(HEAD, "extra.weight", ("unexpected", "extra.weight"), id="extra, head"),
        pytest.param(MODEL, "model.norm.weight", ("mismatch", "norm.weight", "[3]"), id="shape, model"),
        pytest.param(HEAD, "norm.weight", ("norm.weight has shape (3,)", "expected"), id="shape, head"),
    ],
)
def test_load__an_extra_key_and_another_shape_are_named(
    file: str, key: str, words: tuple[str, ...], checkpoint: Path, edit_weights: EditWeights
) -> None:
    edit_weights(checkpoint / file, lambda tensors: tensors.update({key: torch.ones(3)}))
    message = refusal(checkpoint).lower()
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    "name",
    [
        MODEL,
        HEAD,
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
    ],
)
def test_load__a_flipped_byte_names_the_file(name: str, checkpoint: Path) -> None:
    flip_byte(checkpoint / name)
    message = refusal(checkpoint)
    assert message.startswith(str(checkpoint / name))
    assert "the file differs from its hash in the manifest" in message


def test_load__every_broken_file_is_named_at_once(checkpoint: Path) -> None:
    flip_byte(checkpoint / MODEL)
    (checkpoint / HEAD).unlink()
    assert [line.partition(": ")[0] for line in refusal(checkpoint).splitlines()] == [
        str(checkpoint / HEAD),
        str(checkpoint / MODEL),
    ]


@pytest.mark.parametrize(
    ("file", "key", "named"),
    [
        pytest.param(MODEL, "model.norm.weight", "vlm.model.language_model.norm.weight", id="model"),
        pytest.param(HEAD, "norm.weight", "head.norm.weight", id="head"),
    ],
)
def test_load__a_changed_value_in_a_re_signed_file_is_found_by_its_parameter(
    file: str, key: str, named: str, checkpoint: Path, edit_weights: EditWeights
) -> None:
    edit_weights(checkpoint / file, lambda tensors: tensors[key][:1].add_(1e-6))
    assert f"the parameter {named} is not the one that was saved" in refusal(checkpoint)


@pytest.mark.parametrize("file", [MODEL, HEAD])
def test_load__a_changed_value_is_found_though_the_type_is_widened(
    file: str,
    make_config: MakeConfig,
    save_bundle: SaveBundle,
    edit_weights: EditWeights,
    tmp_path: Path,
) -> None:
    built = load(make_config(model={"dtype": "float16"}), for_inference=False)
    folder = save_bundle(built, tmp_path / "final")
    stored = config_of_checkpoint(folder)
    wide = stored.model_copy(update={"model": stored.model.model_copy(update={"dtype": "float32"})})
    for found in load(wide, for_inference=True).detector.parameters():
        assert found.dtype == torch.float32
    key = next(iter(safetensors.torch.load_file(folder / file)))
    edit_weights(folder / file, lambda tensors: tensors[key].view(-1)[:1].add_(0.5))
    with pytest.raises(CheckpointError, match="is not the one that was saved"):
        load(wide, for_inference=True)


def test_verify_parameters__another_name_is_refused(saved: Path, bundle: Bundle) -> None:
    manifest = read_manifest(saved)
    record = manifest.parameters.pop("head.norm.bias")
    with pytest.raises(CheckpointError, match=r"the parameter head.norm.bias is unexpected"):
        verify_parameters(bundle.detector, manifest, saved)
    manifest.parameters["head.norm.bias"] = record
    manifest.parameters["head.norm.gain"] = record
    with pytest.raises(CheckpointError, match=r"the parameter head.norm.gain is missing"):
        verify_parameters(bundle.detector, manifest, saved)


@pytest.mark.parametrize("name", ["loss_version", "format_version"])
def test_load__an_older_version_is_told_to_retrain(
    name: str, checkpoint: Path, edit_manifest: EditManifest
) -> None:
    edit_manifest(checkpoint, lambda record: record.update({name: 0}))
    message = refusal(checkpoint)
    assert f"{name} is 0, expected 1" in message
    assert "retrain, because" in message


@pytest.mark.parametrize(
    ("name", "value"), [("padding_side", "right"), ("resizer", "torchvision"), ("coordinates", "xywh")]
)
def test_load__other_conventions_are_refused(
    name: str, value: str, checkpoint: Path, edit_manifest: EditManifest
) -> None:
    edit_manifest(checkpoint, lambda record: record.update({name: value}))
    assert f"{name} is {value}, expected" in refusal(checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"{", id="cut"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe\x00", id="not text"),
        pytest.param(b"[1, 2]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no keys"),
        pytest.param(b"[" * 100_000, id="too deep"),
    ],
)
def test_load__an_unreadable_manifest_is_named(content: bytes, checkpoint: Path) -> None:
    (checkpoint / "qwendet.json").write_bytes(content)
    message = refusal(checkpoint)
    assert str(checkpoint / "qwendet.json") in message
    assert "the manifest cannot be read" in message


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"files": None}, id="files null"),
        pytest.param({"files": ["model.safetensors"]}, id="files a list"),
        pytest.param({"parameters": None}, id="parameters null"),
        pytest.param({"parameters": {"a": 1}}, id="parameters numbers"),
        pytest.param({"head": {"size": 3}}, id="head of other sizes"),
        pytest.param({"config": {"model": {"padding_side": "right"}}}, id="unknown setting"),
        pytest.param({"surprise": 1}, id="unknown key"),
    ],
)
def test_load__a_manifest_of_another_form_is_refused(
    change: dict[str, Any], checkpoint: Path, edit_manifest: EditManifest
) -> None:
    edit_manifest(checkpoint, lambda record: record.update(change))
    assert "the manifest cannot be read" in refusal(checkpoint)


@pytest.mark.parametrize("name", ["../outside.txt", "head/../../outside.txt", "{absolute}"])
def test_verify_files__a_name_that_leaves_the_folder_is_refused_though_its_hash_is_right(
    name: str, checkpoint: Path, edit_manifest: EditManifest
) -> None:
    outside = checkpoint.parent / "outside.txt"
    outside.write_text("x")
    name = name.format(absolute=outside)
    edit_manifest(checkpoint, lambda record: record["files"].update({name: sha256_of_file(outside)}))
    with pytest.raises(CheckpointError, match="a file of the checkpoint is missing"):
        verify_files(checkpoint, read_manifest(checkpoint))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("other.safetensors", "", id="weights"),
        pytest.param("model.safetensors.index.json", '{"weight_map": {}}', id="index"),
        pytest.param("adapter_config.json", '{"peft_type": "LORA"}', id="adapter"),
        pytest.param("processor_config.json", '{"image_processor": {"patch_size": 7}}', id="processor"),
        pytest.param("additional_chat_templates/default.jinja", "{{ messages }}", id="template"),
    ],
)
def test_load__a_file_that_nobody_vouches_for_is_refused(name: str, content: str, checkpoint: Path) -> None:
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_text(content)
    message = refusal(checkpoint)
    assert str(checkpoint / name.partition("/")[0]) in message
    assert UNKNOWN in message


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


def test_load__a_pickle_in_the_folder_is_never_loaded(checkpoint: Path, bundle: Bundle) -> None:
    exploded = checkpoint.parent / "exploded"
    bomb = pickle.dumps(_Bomb(exploded))
    for name in ("pytorch_model.bin", "training_args.bin", "detection_head.bin"):
        (checkpoint / name).write_bytes(bomb)
    assert_same_weights(load_for_inference(checkpoint).detector, bundle.detector)
    assert not exploded.exists()


def test_load__a_pickle_in_place_of_the_weights_is_refused(plain_copy: Path, make_config: MakeConfig) -> None:
    exploded = plain_copy.parent / "exploded"
    (plain_copy / MODEL).unlink()
    (plain_copy / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(exploded)))
    with pytest.raises(CheckpointError, match="the model cannot be loaded"):
        load(make_config(model={"path": str(plain_copy)}), for_inference=False)
    assert not exploded.exists()


# Whole or not at all


def test_atomic_folder__appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "run" / "final"
    with atomic_folder(target) as staging:
        (staging / "a.txt").write_text("a")
        assert not target.exists()
    assert [path.name for path in tmp_path.glob("run/**/*")] == ["final", "a.txt"]


def test_atomic_folder__leaves_nothing_when_the_block_fails(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "deep" / "run"):
        with pytest.raises(RuntimeError, match="disk"), atomic_folder(folder / "final") as staging:
            (staging / "a.txt").write_text("a")
            raise RuntimeError("disk")
        with pytest.raises(RuntimeError, match="disk"), atomic_file(folder / "a.json"):
            raise RuntimeError("disk")
        assert list(tmp_path.iterdir()) == []


def test_atomic_folder__does_not_replace_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "old.txt").write_text("old")
    with pytest.raises(OSError), atomic_folder(tmp_path / "final") as staging:
        (staging / "new.txt").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["final", "old.txt"]


def lost(target: Path) -> Path:
    """A folder as a kill between the two renames of its replacement leaves it; returns where it lies."""
    replaced = target.with_name(f".{target.name}.replaced")
    replaced.mkdir()
    (replaced / "old.txt").write_text("old")
    return replaced


def test_find_folder__puts_back_what_was_being_replaced_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replaced = lost(tmp_path / "final")
    assert find_folder(tmp_path / "final")
    assert not replaced.exists()
    assert (tmp_path / "final" / "old.txt").read_text() == "old"
    (warning,) = [record.getMessage() for record in caplog.records]
    final = tmp_path / "final"
    assert warning == f"{final} is put back as it was: the process that was replacing it was cut off"


def test_find_folder__leaves_alone_what_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "final").mkdir()
    replaced = lost(tmp_path / "final")
    assert find_folder(tmp_path / "final")
    assert replaced.exists()
    assert not find_folder(tmp_path / "other")
    assert caplog.records == []


def test_find_folder__names_the_command_where_it_may_not_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = lost(tmp_path / "final")

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(DataError) as caught:
        find_folder(tmp_path / "final")
    (problem,) = caught.value.problems
    assert problem.what == f"it lies in {replaced} since its replacement was cut off (Read-only file system)"
    assert (problem.where, problem.fix) == (str(tmp_path / "final"), f"mv {replaced} {tmp_path / 'final'}")


def test_atomic_folder__that_cannot_take_its_name_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "old.txt").write_text("old")
    sound = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if ".writing-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return sound(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(tmp_path / "final", replace=True):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["final", "old.txt"]


def test_atomic_folder__replaces_one_that_was_lost(tmp_path: Path) -> None:
    lost(tmp_path / "final")
    with atomic_folder(tmp_path / "final", replace=True) as staging:
        (staging / "new.txt").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["final", "new.txt"]


def test_atomic_file__appears_whole_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "eval" / "predictions.jsonl"
    for text in ("first", "second"):
        with atomic_file(target) as path:
            path.write_text(text)
        assert target.read_text() == text
    assert list(target.parent.iterdir()) == [target]


def test_atomic_file__leaves_nothing_or_the_old_when_the_block_fails(tmp_path: Path) -> None:
    target = tmp_path / "predictions.jsonl"
    for already in (False, True):
        if already:
            target.write_text("old")
        with pytest.raises(RuntimeError, match="disk"), atomic_file(target) as path:
            path.write_text("half")
            raise RuntimeError("disk")
        assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"] * already
    assert target.read_text() == "old"


def test_atomic_file__says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "predictions.jsonl"
    with pytest.raises(DataError) as caught, atomic_file(target) as path:
        path.write_text("x")
    assert str(caught.value).startswith(f"{target}: cannot write (")


# Going on with a run


def blurred(checkpoint: Path) -> Bundle:
    """The training build of a checkpoint, every number of it another."""
    bundle = load(config_of_checkpoint(checkpoint), for_inference=False)
    assert bundle.detector.head is not None
    with torch.no_grad():
        for tensor in (*bundle.detector.parameters(), *bundle.detector.head.constants().values()):
            tensor.add_(1)
    return bundle


def test_restore__copies_everything_into_the_model_that_is_there_and_builds_no_other(
    saved: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = blurred(saved)
    places = [tensor.data_ptr() for tensor in again.detector.parameters()]
    monkeypatch.delattr(qwendet.loader, "load_vlm")
    restore(again, saved)
    assert_same_weights(again.detector, bundle.detector)
    assert [tensor.data_ptr() for tensor in again.detector.parameters()] == places


@pytest.mark.parametrize(
    ("file", "key", "named"),
    [
        (MODEL, "model.norm.weight", "the parameter vlm.model.language_model.norm.weight is not the one"),
        (HEAD, "norm.weight", "the parameter head.norm.weight is not the one that was saved"),
    ],
)
def test_restore__refuses_a_weight_that_is_not_the_manifest_s(
    checkpoint: Path, edit_weights: EditWeights, file: str, key: str, named: str
) -> None:
    again = blurred(checkpoint)
    edit_weights(checkpoint / file, lambda tensors: tensors[key].mul_(1.5))
    with pytest.raises(CheckpointError, match=named):
        restore(again, checkpoint)


def test_restore__names_a_weight_that_the_file_lacks(checkpoint: Path, edit_weights: EditWeights) -> None:
    again = blurred(checkpoint)
    edit_weights(checkpoint / MODEL, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"the model's weight model\.norm\.weight is missing"):
        restore(again, checkpoint)
