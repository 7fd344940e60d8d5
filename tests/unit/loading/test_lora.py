"""LoRA: only the adapter and the head train, the checkpoint is an adapter, and it fits one base alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from qwendet.config.schema import Config
from qwendet.data.samples import SampleFile
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.demo.tiny import TINY_FOLDER, write_untrained
from qwendet.errors import CheckpointError, ConfigError, EnvironmentLacksError
from qwendet.families.qwen2_5_vl import QWEN2_5_VL
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle, config_of_checkpoint, load
from qwendet.loading.lora import fingerprint, is_adapter, merge_adapter
from qwendet.loading.manifest import files_of
from qwendet.model.precision import group_of
from qwendet.train import train
from qwendet.training.build import create_trainer
from qwendet.training.param_groups import freeze_groups, parameter_groups

MakeConfig = Callable[..., Config]
SaveBundle = Callable[[Bundle, Path], Path]
EditWeights = Callable[[Path, Callable[[dict[str, Tensor]], Any]], None]

ADAPTER = "adapter_model.safetensors"
STEPS = 4


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(DEMO, folder / "val.jsonl", 4, seed=2)
    return write_dataset(DEMO, folder / "train.jsonl", 8, seed=1)


@pytest.fixture(scope="module")
def make_lora(make_config: MakeConfig) -> MakeConfig:
    """A config of an adapter on the tiny model; arguments are keys of `model.lora`."""

    def make(**lora: Any) -> Config:
        labels = {"labels": list(DEMO.labels)}
        return make_config(model={"lora": {"rank": 4, "alpha": 8.0} | lora}, data=labels)

    return make


@pytest.fixture(scope="module")
def make_run(make_config: MakeConfig, scenes: Path) -> MakeConfig:
    """A config of a short run; arguments after the folder are keys of `model.lora`."""

    def make(output_dir: Path, **lora: Any) -> Config:
        files = {"train": str(scenes), "val": str(scenes.with_name("val.jsonl"))}
        return make_config(
            model={"lora": {"rank": 4, "targets": ["all"], "dropout": 0.2} | lora},
            data=files | {"labels": list(DEMO.labels)},
            train={
                "output_dir": str(output_dir),
                "max_steps": STEPS,
                "batch_size": 4,
                "learning_rate": 1e-3,
                "lr_scheduler": "constant",
                "save_steps": 2,
                "logging_steps": 1,
            },
        )

    return make


@pytest.fixture(scope="module")
def run(make_run: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an adapter everywhere; read only."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(make_run(folder))
    return folder


@pytest.fixture
def adapter(run: Path, tmp_path: Path) -> Path:
    """A copy of the run's last checkpoint to break."""
    return Path(shutil.copytree(run / "final", tmp_path / "final"))


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def randomise(bundle: Bundle) -> None:
    """Give the adapter something to say: its second matrices are zero at first."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in bundle.detector.named_parameters():
        if is_adapter(name):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05


def token_nll(bundle: Bundle, scenes: Path) -> Tensor:
    encoder = bundle.encoder()
    samples = [encoder.encode(sample, with_answer=True) for sample in list(SampleFile(scenes))[:2]]
    with torch.no_grad():
        tokens = bundle.detector(bundle.collator()(samples)).tokens
    assert tokens is not None
    return tokens.nll


def refusal(folder: Path, *overrides: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        Predictor.from_checkpoint(folder, overrides=overrides)
    return str(caught.value)


# What trains


@pytest.mark.parametrize(
    ("targets", "groups"),
    [
        ("language", {"language", "head"}),
        ("vision", {"vision", "head"}),
        ("all", {"vision", "merger", "language", "head"}),
        (["q_proj", "language_model.layers.0.mlp.up_proj"], {"language", "head"}),
    ],
)
def test_groups__the_adapter_is_in_the_group_of_its_part_and_the_base_is_frozen(
    targets: Any, groups: set[str], make_lora: MakeConfig
) -> None:
    config = make_lora(targets=targets)
    detector = load(config, for_inference=False).detector
    freeze_groups(detector, QWEN2_5_VL, config.train.group_learning_rates())
    trained = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert {group_of(name, QWEN2_5_VL) for name in trained} == groups
    assert all(is_adapter(name) or name.startswith("head.") for name in trained)
    assert all(parameter.requires_grad for parameter in detector.head.parameters()), "the head trains in full"
    made = parameter_groups(detector, QWEN2_5_VL, config.train.group_learning_rates(), 0.1)
    assert sum(len(group["params"]) for group in made) == len(trained)
    assert type(detector.vlm) is Qwen2_5_VLForConditionalGeneration


def test_train__the_base_stays_bitwise_and_adapter_and_head_change(
    make_run: MakeConfig, tmp_path: Path
) -> None:
    trainer = create_trainer(make_run(tmp_path / "run"))
    before = state_of(trainer.bundle.detector)
    trainer.train()
    after = state_of(trainer.bundle.detector)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {group_of(name, QWEN2_5_VL) for name in changed} == {"vision", "merger", "language", "head"}
    assert changed == {name for name in before if is_adapter(name) or name.startswith("head.")}


def test_add__an_untrained_adapter_changes_nothing_and_is_a_function_of_the_seed(
    make_lora: MakeConfig, make_config: MakeConfig, scenes: Path
) -> None:
    state = torch.get_rng_state()
    first, again = (load(make_lora(), for_inference=False) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    plain = load(make_config(data={"labels": list(DEMO.labels)}), for_inference=False)
    for bundle in (first, plain):
        bundle.detector.eval()
    assert torch.equal(token_nll(first, scenes), token_nll(plain, scenes))
    wanted = state_of(first.detector)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state_of(again.detector).items())


def test_dropout__0_is_0_and_another_is_not(make_lora: MakeConfig, scenes: Path) -> None:
    for dropout, is_none in ((0.0, True), (0.5, False)):
        bundle = load(make_lora(dropout=dropout), for_inference=False)
        randomise(bundle)
        bundle.detector.train()
        kinds = {
            type(layer.lora_dropout["default"])
            for layer in bundle.detector.modules()
            if isinstance(layer, LoraLayer)
        }
        assert kinds == {torch.nn.Identity if is_none else torch.nn.Dropout}
        assert torch.equal(token_nll(bundle, scenes), token_nll(bundle, scenes)) == is_none


def test_half_precision__the_adapter_is_float32(make_config: MakeConfig) -> None:
    config = make_config(model={"dtype": "bfloat16", "lora": {"rank": 2}})
    for name, parameter in load(config, for_inference=False).detector.named_parameters():
        is_trained = is_adapter(name) or group_of(name, QWEN2_5_VL) == "head"
        assert parameter.dtype == (torch.float32 if is_trained else torch.bfloat16), name


def test_targets__that_name_nothing_are_refused(make_lora: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.targets: no adapter can be put there"):
        load(make_lora(targets=["no_such_layer"]), for_inference=False)


@pytest.mark.parametrize(
    ("lora", "rates", "said"),
    [
        ({"targets": []}, {}, "model.lora.targets needs names"),
        ({"targets": ["a b"]}, {}, "model.lora.targets needs names"),
        (
            {"targets": "language"},
            {"vision_learning_rate": 1e-5},
            "train.vision_learning_rate is 1e-05, but model.lora.targets leaves the vision part frozen",
        ),
    ],
)
def test_config__contradictions_are_refused(
    lora: dict[str, Any], rates: dict[str, float], said: str, make_config: MakeConfig
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(model={"lora": lora}, train=rates)
    assert said in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_4_bit__without_a_gpu_ends_with_code_3(make_lora: MakeConfig) -> None:
    with pytest.raises(EnvironmentLacksError, match="a base in 4 bits needs a CUDA GPU") as caught:
        load(make_lora(load_in_4bit=True), for_inference=False)
    assert caught.value.exit_code == 3


# The checkpoint


def test_checkpoint__holds_adapter_and_head_and_not_the_base(run: Path) -> None:
    assert files_of(run / "final") == [
        "adapter_config.json",
        ADAPTER,
        "chat_template.jinja",
        "head/detection_head.safetensors",
        "preprocessor_config.json",
        "qwendet.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    record = json.loads((run / "final" / "qwendet.json").read_text(encoding="utf-8"))
    assert all(is_adapter(name) or name.startswith("head.") for name in record["parameters"])
    lora = record["config"]["model"]["lora"]
    assert (lora["base"], lora["fingerprint"]) == ("tiny-untrained", fingerprint(write_untrained()))


def test_promise__evaluation_in_training_is_what_infer_gives(run: Path, scenes: Path) -> None:
    samples = SampleFile(scenes.with_name("val.jsonl"))
    lines = [item.to_json() for item in Predictor.from_checkpoint(run / "final").predict(samples)]
    assert lines == (run / "eval" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()


def test_resume__is_bitwise_with_dropout(run: Path, make_run: MakeConfig, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    train(make_run(tmp_path / "run"), resume=True)
    wanted, found = (Predictor.from_checkpoint(folder / "final").bundle for folder in (run, tmp_path / "run"))
    wanted_state = state_of(wanted.detector)
    assert all(torch.equal(tensor, wanted_state[name]) for name, tensor in state_of(found.detector).items())


@pytest.mark.parametrize(
    ("lora", "named"),
    [
        ({"rank": 8}, "model.lora.rank is 8, but the run was started with 4"),
        ({"targets": ["language"]}, "model.lora.targets is ('language',)"),
    ],
)
def test_resume__with_another_adapter_is_refused(
    lora: dict[str, Any], named: str, run: Path, make_run: MakeConfig, tmp_path: Path
) -> None:
    shutil.copytree(run / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    with pytest.raises(CheckpointError) as caught:
        train(make_run(tmp_path / "run", **lora), resume=True)
    assert named in str(caught.value)


def test_training_goes_on_from_an_adapter_as_model_path(
    run: Path, make_run: MakeConfig, tmp_path: Path
) -> None:
    config = make_run(tmp_path / "run")
    model = config.model.model_copy(update={"path": str(run / "final")})
    bundle = load(config.model_copy(update={"model": model}), for_inference=False)
    wanted = state_of(Predictor.from_checkpoint(run / "final").bundle.detector)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state_of(bundle.detector).items())
    assert bundle.config.model.lora is not None
    assert bundle.config.model.lora.base == "tiny-untrained"


# What is refused


def test_base__another_one_is_refused(adapter: Path) -> None:
    message = refusal(adapter, "model.lora.base=tiny")
    assert "not the base model that the adapter was trained on" in message
    assert fingerprint(TINY_FOLDER)[:16] in message
    assert "in training it was tiny-untrained" in message


def test_base__one_changed_weight_is_refused_and_another_place_is_not(
    adapter: Path, tmp_path: Path, edit_weights: EditWeights
) -> None:
    base = Path(shutil.copytree(write_untrained(), tmp_path / "base"))
    override = f"model.lora.base={base}"
    assert Predictor.from_checkpoint(adapter, overrides=[override]).bundle.config.model.lora is not None
    edit_weights(base / "model.safetensors", lambda tensors: tensors["model.norm.weight"].add_(1e-3))
    assert "not the base model that the adapter was trained on" in refusal(adapter, override)


def test_base__that_is_an_adapter_itself_is_refused(adapter: Path, run: Path) -> None:
    assert "the base model is itself an adapter" in refusal(adapter, f"model.lora.base={run / 'final'}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(sorted(tensors)[0]), "is missing"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "more is unexpected"),
        (lambda tensors: tensors.update({sorted(tensors)[0]: torch.zeros(3, 3)}), "has shape (3, 3)"),
        (lambda tensors: tensors[sorted(tensors)[0]].add_(1), "is not the one that was saved"),
    ],
)
def test_adapter__every_weight_is_the_one_that_was_saved(
    change: Any, said: str, adapter: Path, edit_weights: EditWeights
) -> None:
    edit_weights(adapter / ADAPTER, change)
    assert said in refusal(adapter)


def test_adapter__a_changed_byte_is_found(adapter: Path) -> None:
    content = bytearray((adapter / ADAPTER).read_bytes())
    content[-1] ^= 1
    (adapter / ADAPTER).write_bytes(content)
    assert "the file differs from its hash in the manifest" in refusal(adapter)


def test_adapter__loaded_without_model_lora_is_refused(adapter: Path) -> None:
    config = config_of_checkpoint(adapter)
    plain = config.model_copy(update={"model": config.model.model_copy(update={"lora": None})})
    with pytest.raises(CheckpointError, match=r"the checkpoint is an adapter with \{'rank': 4"):
        load(plain, for_inference=False)


def test_infer__an_untrained_adapter_is_refused(saved: Path, adapter: Path) -> None:
    """Nothing may be served that was not trained, were it a matrix of zeros."""
    config = config_of_checkpoint(saved)
    lora = config_of_checkpoint(adapter).model.lora
    model = config.model.model_copy(update={"lora": lora and lora.model_copy(update={"fingerprint": None})})
    with pytest.raises(CheckpointError, match="the checkpoint has no adapter"):
        load(config.model_copy(update={"model": model}), for_inference=True)
    for folder, override in ((saved, "model.lora.rank=4"), (adapter, "model.lora.alpha=1.0")):
        with pytest.raises(ConfigError, match=r"model\.lora is not what the checkpoint was trained with"):
            Predictor.from_checkpoint(folder, overrides=[override])


# Merged


def test_merge__equals_unmerged_within_noise_and_leaves_the_published_names(
    make_lora: MakeConfig, make_config: MakeConfig, scenes: Path
) -> None:
    bundle = load(make_lora(targets="all"), for_inference=False)
    plain = load(make_config(data={"labels": list(DEMO.labels)}), for_inference=False)
    bundle.detector.eval()
    randomise(bundle)
    unmerged, untouched = token_nll(bundle, scenes), token_nll(plain, scenes)
    merge_adapter(bundle.detector.vlm)
    assert list(state_of(bundle.detector)) == list(state_of(plain.detector))
    torch.testing.assert_close(token_nll(bundle, scenes), unmerged, rtol=1e-4, atol=1e-5)
    assert (unmerged - untouched).abs().max() > 0.1, "the adapter says something"


# peft asks transformers by a name that is deprecated there.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft__loads_the_adapter_without_qwendet(run: Path, scenes: Path) -> None:
    """In float64: they embed patches by a convolution, and a product rounds otherwise."""
    served = Predictor.from_checkpoint(run / "final").bundle
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(write_untrained(), dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, run / "final").eval().double()
    vlm = served.detector.vlm.double()
    encoder = served.encoder()
    batch = served.collator()([encoder.encode(SampleFile(scenes)[0], with_answer=True)])
    keys = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
    with torch.no_grad():
        found = theirs(**{key: batch[key] for key in keys}).logits
        wanted = vlm(**{key: batch[key] for key in keys}).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
