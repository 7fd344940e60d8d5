"""THE loader: every weight arrives under its published name, or loading fails and says which did not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from qwendet.config.schema import Config
from qwendet.demo import tiny
from qwendet.errors import CheckpointError, DataError, EnvironmentLacksError
from qwendet.loader import Bundle, config_of_checkpoint, load
from qwendet.loading.weights import end_with_turn
from qwendet.model.head import DetectionHead, HeadShape

MakeConfig = Callable[..., Config]
SaveBundle = Callable[[Bundle, Path], Path]
EditWeights = Callable[[Path, Callable[[dict[str, Tensor]], Any]], None]

MODEL = "model.safetensors"
INDEX = "qwen_processor/Qwen2.5-VL-7B-Instruct/model.safetensors.index.json"
LAYER_NUMBER = re.compile(r"\.\d+\.")

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def head_of(bundle: Bundle) -> DetectionHead:
    assert bundle.detector.head is not None
    return bundle.detector.head


def assert_same_state(found: torch.nn.Module, wanted: torch.nn.Module) -> None:
    found_state = found.state_dict() | dict(found.named_buffers())
    for name, tensor in (wanted.state_dict() | dict(wanted.named_buffers())).items():
        assert torch.equal(found_state.pop(name), tensor), name
    assert not found_state


def recomputes(bundle: Bundle) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in bundle.detector.modules())


# A base model without a manifest


@pytest.mark.parametrize(
    ("published", "found"), [(None, [2]), (1, [2, 1]), ([1], [2, 1]), ([1, 2], [1, 2]), (2, 2)]
)
def test_end_with_turn__adds_the_end_of_a_turn_to_others(published: Any, found: Any) -> None:
    settings = GenerationConfig(eos_token_id=published)
    end_with_turn(settings, SimpleNamespace(eos_token_id=2))
    assert settings.eos_token_id == found


def test_load__inference_without_the_head_that_training_built_is_refused(
    plain_copy: Path, make_config: MakeConfig
) -> None:
    """Bug 2 of the original scripts: training built the head, inference a model without it."""
    config = make_config(model={"path": str(plain_copy)})
    assert load(config, for_inference=False).detector.head is not None
    with pytest.raises(CheckpointError) as caught:
        load(config, for_inference=True)
    assert str(caught.value) == (
        f"{plain_copy}: detection.enabled is true, but the checkpoint has no head: inference would use random"
        " weights (set detection.enabled to false, or train a head first)"
    )


def test_load__inference_on_a_checkpoint_that_was_trained_without_a_head_is_refused(
    make_config: MakeConfig, save_bundle: SaveBundle, tmp_path: Path
) -> None:
    without_head = load(make_config(detection={"enabled": False}), for_inference=False)
    folder = save_bundle(without_head, tmp_path / "final")
    with pytest.raises(CheckpointError, match="the checkpoint has no head"):
        load(make_config(model={"path": str(folder)}), for_inference=True)
    trained_further = load(make_config(model={"path": str(folder)}), for_inference=False)
    assert_same_state(trained_further.detector.vlm, without_head.detector.vlm)


def test_load__inference_in_text_only_needs_no_head(plain_copy: Path, make_config: MakeConfig) -> None:
    config = make_config(model={"path": str(plain_copy)}, detection={"enabled": False})
    assert load(config, for_inference=True).detector.head is None


def test_load__a_new_head_is_a_function_of_the_seed(make_config: MakeConfig) -> None:
    first, again, other = (load(make_config(train={"seed": seed}), for_inference=False) for seed in (5, 5, 6))
    assert_same_state(head_of(again), head_of(first))
    assert not torch.equal(head_of(other).query.weight, head_of(first).query.weight)
    assert_same_state(other.detector.vlm, first.detector.vlm)


def test_load__a_new_head_is_centred_on_the_vocabulary_and_a_trained_one_stays_where_it_was(
    make_config: MakeConfig, save_bundle: SaveBundle, tmp_path: Path
) -> None:
    bundle = load(make_config(), for_inference=False)
    vocabulary, centre = (
        bundle.detector.vlm.get_input_embeddings().weight,
        head_of(bundle).labels.centre.clone(),
    )
    torch.testing.assert_close(centre, vocabulary.detach().mean(0))
    with torch.no_grad():
        vocabulary += 1
    folder = save_bundle(bundle, tmp_path / "final")
    for for_inference in (True, False):
        kept = load(make_config(model={"path": str(folder)}), for_inference=for_inference)
        assert torch.equal(head_of(kept).labels.centre, centre)


def test_load__global_random_state_is_left_alone(make_config: MakeConfig) -> None:
    load(make_config(), for_inference=False)  # writes the untrained model, once for the process
    torch.manual_seed(11)
    before = torch.get_rng_state()
    load(make_config(), for_inference=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_load__training_and_inference_build_the_same_but_for_the_mode(
    saved: Path, make_config: MakeConfig
) -> None:
    config = config_of_checkpoint(saved)
    trained, served = load(config, for_inference=False), load(config, for_inference=True)
    assert_same_state(served.detector, trained.detector)
    assert served.config == trained.config
    assert served.detector.vlm.config.to_dict() == trained.detector.vlm.config.to_dict()
    assert (served.encoder().label_tokens(served.labels), served.labels) == (
        trained.encoder().label_tokens(trained.labels),
        trained.labels,
    )
    assert not served.detector.training


def test_load__gradient_checkpointing_is_for_training_only(make_config: MakeConfig, saved: Path) -> None:
    model = {"gradient_checkpointing": True}
    assert recomputes(load(make_config(model=model), for_inference=False))
    assert not recomputes(load(make_config(), for_inference=False))
    stored = config_of_checkpoint(saved)
    stored = stored.model_copy(update={"model": stored.model.model_copy(update=model)})
    assert recomputes(load(stored, for_inference=False))
    assert not recomputes(load(stored, for_inference=True))


def test_load__the_published_class_is_held_never_subclassed(saved: Path, make_config: MakeConfig) -> None:
    for config, for_inference in ((make_config(), False), (config_of_checkpoint(saved), True)):
        vlm = load(config, for_inference=for_inference).detector.vlm
        assert type(vlm) is Qwen2_5_VLForConditionalGeneration


# The head


@pytest.mark.parametrize("sizes", [{"hidden_size": 32}, {"num_layers": 1}, {"num_heads": 8}])
@pytest.mark.parametrize("for_inference", [True, False])
def test_load__a_head_of_another_shape_is_refused(
    sizes: dict[str, int], for_inference: bool, saved: Path, make_config: MakeConfig
) -> None:
    config = make_config(model={"path": str(saved)}, detection=sizes)
    with pytest.raises(CheckpointError) as caught:
        load(config, for_inference=for_inference)
    message = str(caught.value)
    ((name, value),) = sizes.items()
    assert message.startswith(f"{saved}: the config wants the head HeadShape(")
    assert f"{name}={value}" in message
    assert "leave detection.hidden_size, num_layers and num_heads at null" in message


def test_load__sizes_left_open_are_the_checkpoint_s(saved: Path, make_config: MakeConfig) -> None:
    open_sizes = {"hidden_size": None, "num_layers": None, "num_heads": None}
    found = load(make_config(model={"path": str(saved)}, detection=open_sizes), for_inference=True)
    assert head_of(found).shape == HeadShape(128, 160, hidden_size=64, num_layers=2, num_heads=4)
    assert found.config.detection.hidden_size == 64


def test_load__detection_off_leaves_the_checkpoint_s_head_out(
    saved: Path, bundle: Bundle, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(model={"path": str(saved)}, detection={"enabled": False})
    with caplog.at_level("INFO", logger="qwendet"):
        found = load(config, for_inference=True)
    assert found.detector.head is None
    assert_same_state(found.detector.vlm, bundle.detector.vlm)
    assert "head: detection.enabled is false, so the checkpoint's head is left out" in caplog.messages


# What the machine lacks, what is not there


@without_gpu
@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param(
            {"attn_implementation": "flash_attention_2"},
            "model.attn_implementation: flash_attention_2 needs a CUDA GPU",
            id="flash attention",
        ),
        pytest.param({"device": "cuda"}, "model.device: model.device is cuda, but torch sees no", id="gpu"),
    ],
)
def test_load__what_the_machine_lacks_is_said_with_exit_code_3(
    model: dict[str, str], message: str, make_config: MakeConfig
) -> None:
    with pytest.raises(EnvironmentLacksError) as caught:
        load(make_config(model=model), for_inference=False)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 3


@without_gpu
def test_load__what_auto_means_is_printed_and_recorded(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    auto = {"device": "auto", "dtype": "auto", "attn_implementation": "auto"}
    with caplog.at_level("INFO", logger="qwendet"):
        found = load(make_config(model=auto), for_inference=False)
    assert "device: cpu, dtype: float32, autocast: none, attention: sdpa" in caplog.messages
    model = found.config.model
    assert (model.device, model.dtype, model.attn_implementation) == ("cpu", "float32", "sdpa")
    assert found.detector.vlm.config._attn_implementation == "sdpa"


def test_load__unknown_model_directory(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(make_config(model={"path": str(tmp_path / "none")}), for_inference=False)
    expected = f"{tmp_path / 'none'}: there is no such model directory (give"
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("no/such-model", r"the model \(no folder of this name is here.*\) cannot be loaded: ."),
        *(
            (path, "there is no such model directory")
            for path in ("./nowhere", "no such name", "a/b/c", "run")
        ),
    ],
)
def test_load__unknown_hub_id(path: str, what: str, make_config: MakeConfig) -> None:
    with pytest.raises(CheckpointError, match=what) as caught:
        load(make_config(model={"path": path}), for_inference=False)
    assert caught.value.problems[0].where == path


def test_load__without_labels(make_config: MakeConfig) -> None:
    with pytest.raises(DataError, match="there is no label to look for"):
        load(make_config(data={"labels": None}), for_inference=False)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        pytest.param(
            "config.json", None, "has no manifest (qwendet.json), nor is there a config.json", id="config"
        ),
        pytest.param(
            "config.json",
            '{"model_type": "llama"}',
            "model_type llama is no family that is supported",
            id="another model",
        ),
        pytest.param("config.json", "{", "the model cannot be loaded", id="cut config"),
        pytest.param(MODEL, None, f"no file named {MODEL}", id="weights"),
        pytest.param(MODEL, "cut", "the model cannot be loaded: Error while deserializing", id="cut weights"),
        pytest.param("tokenizer.json", None, "the tokenizer is not the model's", id="tokenizer"),
        pytest.param(
            "tokenizer.json", "{", "the tokenizer and image processor cannot be", id="cut tokenizer"
        ),
        pytest.param("tokenizer_config.json", None, "the end of turn <|im_end|>", id="tokenizer config"),
        pytest.param("chat_template.jinja", None, "expected a chat template", id="chat template"),
        pytest.param("preprocessor_config.json", None, "image processor cannot be loaded", id="processor"),
    ],
)
def test_load__an_incomplete_model_directory_is_refused(
    name: str, content: str | None, what: str, plain_copy: Path, make_config: MakeConfig
) -> None:
    (plain_copy / name).unlink()
    if content is not None:
        (plain_copy / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        load(make_config(model={"path": str(plain_copy)}), for_inference=False)
    assert str(caught.value).startswith(f"{plain_copy}: ")
    assert what in str(caught.value)


def test_load__another_model_s_tokenizer_is_refused(
    plain_copy: Path, make_config: MakeConfig, shared: Path
) -> None:
    published = shared / "qwen_processor/Qwen2.5-VL-7B-Instruct"
    (plain_copy / "tokenizer.json").unlink()
    (plain_copy / "chat_template.jinja").unlink()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (plain_copy / name).write_bytes((published / name).read_bytes())
    with pytest.raises(
        CheckpointError, match=r"its <\|image_pad\|> is 151655 of 151665 tokens, the model's 435 of 445"
    ):
        load(make_config(model={"path": str(plain_copy)}), for_inference=False)


# Published key names


def published_name(name: str) -> str:
    """The name that a parameter of ``Qwen2_5_VLForConditionalGeneration`` has in the published files."""
    name = name.removeprefix("model.").replace("language_model.", "model.", 1)
    return name


def pattern(name: str) -> str:
    return LAYER_NUMBER.sub(".N.", name)


@pytest.fixture(scope="module")
def mini() -> Qwen2_5_VLForConditionalGeneration:
    """A model whose every weight, norms and biases too, is drawn at random."""
    config = Qwen2_5_VLConfig.from_pretrained(tiny.write_untrained(), tie_word_embeddings=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Qwen2_5_VLForConditionalGeneration(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
    return model


@pytest.fixture
def published(mini: Qwen2_5_VLForConditionalGeneration, plain_copy: Path) -> Path:
    """The mini model with its weights under the published names, in two shards with an index."""
    mini.config.save_pretrained(plain_copy)
    (plain_copy / MODEL).unlink()
    weights = {published_name(name): tensor.clone() for name, tensor in mini.state_dict().items()}
    weight_map = {}
    for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        safetensors.torch.save_file(
            {name: weights[name] for name in names}, plain_copy / shard, {"format": "pt"}
        )
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (plain_copy / f"{MODEL}.index.json").write_text(json.dumps(index))
    return plain_copy


def test_published_names__those_of_the_mini_model_are_those_of_the_published_index(
    shared: Path, published: Path
) -> None:
    wanted, found = (
        {pattern(name) for name in json.loads(path.read_text(encoding="utf-8"))["weight_map"]}
        for path in (shared / INDEX, published / f"{MODEL}.index.json")
    )
    assert found == wanted
    assert len(wanted) == 31


def test_published_names__a_saved_checkpoint_uses_them(shared: Path, saved: Path) -> None:
    published = {pattern(name) for name in json.loads((shared / INDEX).read_text())["weight_map"]}
    found = {pattern(name) for name in safetensors.torch.load_file(saved / MODEL)}
    assert found == published - {"lm_head.weight"}  # tied in the tiny model


@pytest.mark.parametrize("detection", [True, False])
def test_published_names__every_weight_arrives_bit_for_bit(
    detection: bool, published: Path, mini: Qwen2_5_VLForConditionalGeneration, make_config: MakeConfig
) -> None:
    config = make_config(model={"path": str(published)}, detection={"enabled": detection})
    found = load(config, for_inference=False).detector
    assert type(found.vlm) is Qwen2_5_VLForConditionalGeneration
    assert_same_state(found.vlm, mini)
    assert (found.head is not None) == detection


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("lm_head.weight", "lm_head.weight"),
        ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("model.layers.2.self_attn.k_proj.bias", "model.language_model.layers.2.self_attn.k_proj.bias"),
        ("visual.patch_embed.proj.weight", "model.visual.patch_embed.proj.weight"),
        ("visual.merger.ln_q.weight", "model.visual.merger.ln_q.weight"),
    ],
)
@pytest.mark.parametrize("renamed", [False, True])
def test_published_names__a_lost_or_renamed_tensor_is_named(
    key: str, named: str, renamed: bool, published: Path, make_config: MakeConfig, edit_weights: EditWeights
) -> None:
    index = json.loads((published / f"{MODEL}.index.json").read_text())
    shard = index["weight_map"].pop(key)

    def lose(tensors: dict[str, Tensor]) -> None:
        tensor = tensors.pop(key)
        if renamed:
            tensors["model.thinker.weight"] = tensor

    edit_weights(published / shard, lose)
    if renamed:
        index["weight_map"]["model.thinker.weight"] = shard
    (published / f"{MODEL}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        load(make_config(model={"path": str(published)}), for_inference=False)
    whats = [problem.what for problem in caught.value.problems]
    assert f"1 missing keys, such as {named}" in whats
    assert any("unexpected" in what and "thinker.weight" in what for what in whats) == renamed


def test_published_names__names_of_a_subclass_s_own_layout_are_refused(
    published: Path, mini: Qwen2_5_VLForConditionalGeneration, make_config: MakeConfig
) -> None:
    """The wrapper's own names (`vlm.…`) in a plain directory: nothing would arrive."""
    for path in (*published.glob("model-*"), published / f"{MODEL}.index.json"):
        path.unlink()
    weights = {f"vlm.{name}": tensor for name, tensor in mini.state_dict().items()}
    safetensors.torch.save_file(weights, published / MODEL, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load(make_config(model={"path": str(published)}), for_inference=False)
    assert f"{len(weights)} missing keys" in str(caught.value)
    assert f"{len(weights)} unexpected keys" in str(caught.value)
    shutil.rmtree(published)
