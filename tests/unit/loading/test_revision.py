"""`model.revision`: of two commits on the hub the wanted one is read, recorded, and found again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from qwendet.checks.config.memory import run_memory_check
from qwendet.checks.subject import temporary_subject
from qwendet.config.load import load_config
from qwendet.config.schema import Config
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.errors import CheckpointError, ConfigError, EnvironmentLacksError
from qwendet.export.model_card import render_card
from qwendet.export.serving import serving_of
from qwendet.inference.inputs import sample_of_image
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle, load, load_interface
from qwendet.loading.manifest import read_manifest
from qwendet.source import find_source
from tests.invariants.build import source

MakeConfig = Callable[..., Config]
SaveBundle = Callable[[Bundle, Path], Path]
EditWeights = Callable[[Path, Callable[[dict[str, Tensor]], Any]], None]
EditManifest = Callable[[Path, Callable[[dict[str, Any]], Any]], None]

HUB_ID = "team/cells"
FIRST, SECOND = "1" * 40, "2" * 40
NORM = "vlm.model.language_model.norm.weight"


def add_commit(cache: Path, commit: str, files: Path, *refs: str) -> None:
    """Put a commit into a cache as huggingface_hub does: bytes in blobs/, names in snapshots/."""
    repository = cache / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for file in files.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    for ref in refs:
        (repository / "refs" / ref).write_text(commit, encoding="utf-8")


@pytest.fixture
def hub(
    plain_folder: Path, tmp_path: Path, edit_weights: EditWeights, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A cache with two commits: `v1` is the first, `main` the second, with other weights and limits."""
    second = Path(shutil.copytree(plain_folder, tmp_path / "second"))
    edit_weights(second / "model.safetensors", lambda tensors: tensors["model.norm.weight"].fill_(2.0))
    settings = json.loads((second / "preprocessor_config.json").read_text(encoding="utf-8"))
    changed = settings | {"max_pixels": 28 * 28 * 16}
    (second / "preprocessor_config.json").write_text(json.dumps(changed), encoding="utf-8")
    cache = tmp_path / "hub"
    add_commit(cache, FIRST, plain_folder, "v1")
    add_commit(cache, SECOND, second, "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


def norm_of(bundle: Bundle) -> float:
    return bundle.detector.get_parameter(NORM)[0].item()


def limit_of(bundle: Bundle) -> int:
    return int(bundle.processor.image_processor.size["longest_edge"])


@pytest.mark.parametrize(
    ("revision", "commit", "norm", "max_pixels"),
    [
        pytest.param(None, SECOND, 2.0, 28 * 28 * 16, id="default branch"),
        pytest.param("main", SECOND, 2.0, 28 * 28 * 16, id="branch"),
        pytest.param("v1", FIRST, 1.0, 112 * 112 * 4, id="tag"),
        pytest.param(FIRST, FIRST, 1.0, 112 * 112 * 4, id="commit"),
    ],
)
def test_revision__all_files_are_of_its_commit_and_the_manifest_names_it(
    revision: str | None,
    commit: str,
    norm: float,
    max_pixels: int,
    hub: Path,
    make_config: MakeConfig,
    save_bundle: SaveBundle,
    tmp_path: Path,
) -> None:
    config = make_config(model={"path": HUB_ID, "revision": revision})
    bundle = load(config, for_inference=False)
    assert (norm_of(bundle), limit_of(bundle)) == (norm, max_pixels)
    Image.new("RGB", (400, 400)).save(tmp_path / "square.png")
    encoder = load_interface(config).encoder()
    seen = encoder.encode(sample_of_image(tmp_path / "square.png"), with_answer=False)
    assert int(seen.image_grid_thw[0].prod()) * 14 * 14 == max_pixels
    trained = read_manifest(save_bundle(bundle, tmp_path / "final"))
    assert (trained.config.model.path, trained.config.model.revision) == (HUB_ID, commit)
    card = render_card(trained, serving_of(bundle, "cells", ""), {})
    assert f"| base model | {HUB_ID} at {commit} |" in card
    assert f"\nbase_model: {HUB_ID}\n" in card


def test_revision__a_checkpoint_needs_the_hub_no_more(
    hub: Path, make_config: MakeConfig, save_bundle: SaveBundle, tmp_path: Path
) -> None:
    folder = save_bundle(load(make_config(model={"path": HUB_ID}), for_inference=False), tmp_path / "final")
    shutil.rmtree(hub)
    served = Predictor.from_checkpoint(folder).bundle
    assert (norm_of(served), served.config.model.revision) == (2.0, None)


def test_revision__an_adapter_is_put_on_the_commit_that_it_was_trained_on(
    hub: Path, make_config: MakeConfig, save_bundle: SaveBundle, tmp_path: Path
) -> None:
    """Though `main` has moved on since."""
    config = make_config(model={"path": HUB_ID, "revision": "v1", "lora": {"rank": 2}})
    folder = save_bundle(load(config, for_inference=False), tmp_path / "final")
    lora = read_manifest(folder).config.model.lora
    assert lora is not None
    assert (lora.base, lora.revision) == (HUB_ID, FIRST)
    peft = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (peft["base_model_name_or_path"], peft["revision"]) == (HUB_ID, FIRST)
    assert norm_of(Predictor.from_checkpoint(folder).bundle) == 1.0
    with pytest.raises(CheckpointError, match=f"in training it was {HUB_ID} at {FIRST}"):
        Predictor.from_checkpoint(folder, overrides=["model.lora.revision=main"])


def test_revision__of_an_adapter_is_for_the_hub_and_not_for_a_folder(
    hub: Path, plain_folder: Path, make_config: MakeConfig, save_bundle: SaveBundle, tmp_path: Path
) -> None:
    config = make_config(model={"path": HUB_ID, "revision": "v1", "lora": {"rank": 2}})
    folder = save_bundle(load(config, for_inference=False), tmp_path / "final")
    moved = Predictor.from_checkpoint(folder, overrides=[f"model.lora.base={plain_folder}"]).bundle
    lora = moved.config.model.lora
    assert lora is not None
    assert (lora.base, lora.revision) == (str(plain_folder), None)


def test_revision__a_checkpoint_on_the_hub_is_one(
    hub: Path, saved: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its manifest it is verified, and its head is the one that goes on training."""
    repository = tmp_path / "published"
    snapshot = repository / f"models--{HUB_ID.replace('/', '--')}" / "snapshots" / FIRST
    shutil.copytree(saved, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(repository))
    config = make_config(model={"path": HUB_ID, "revision": FIRST})
    wanted = Predictor.from_checkpoint(saved).bundle.detector.state_dict()
    found = load(config, for_inference=False).detector.state_dict()
    assert all(bool((found[name] == tensor).all()) for name, tensor in wanted.items())
    (snapshot / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="the file differs from its hash in the manifest"):
        load(config, for_inference=False)


def test_manifest__of_a_version_before_revisions_still_loads(
    checkpoint: Path, edit_manifest: EditManifest
) -> None:
    edit_manifest(checkpoint, lambda record: record["config"]["model"].pop("revision"))
    assert read_manifest(checkpoint).config.model.revision is None
    Predictor.from_checkpoint(checkpoint)


# What looks at files without a model


def test_revision__the_memory_estimate_reads_its_config(hub: Path, make_config: MakeConfig) -> None:
    """A commit without weights is enough."""
    (snapshot,) = (hub / "models--team--cells" / "snapshots").glob(f"{FIRST}")
    (snapshot / "model.safetensors").unlink()
    data = {"train": None, "labels": list(DEMO.labels)}
    (result,) = run_memory_check(make_config(model={"path": HUB_ID, "revision": "v1"}, data=data))
    assert result.status == "pass", result
    assert "a training step of the largest batch needs about" in result.what


def test_source__the_files_of_a_hub_id_are_held_against_the_model(
    hub: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    train = str(write_dataset(DEMO, tmp_path / "train.jsonl", 4, seed=1))
    data = {"train": train, "labels": list(DEMO.labels)}
    config = make_config(model={"path": HUB_ID, "revision": "v1"}, data=data)
    with temporary_subject(config) as subject:
        assert source(subject) == []
        with torch.no_grad():
            next(iter(subject.bundle.detector.vlm.parameters())).add_(1)
        assert [problem.where for problem in source(subject)] != []


# What is refused


def test_load__what_the_machine_lacks_is_told_before_anything_is_downloaded(
    hub: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("qwendet.source.snapshot_download", lambda path, **kwargs: asked.append(path))
    config = make_config(model={"path": HUB_ID, "attn_implementation": "flash_attention_2"})
    with pytest.raises(EnvironmentLacksError, match="flash_attention_2 needs a CUDA GPU"):
        load(config, for_inference=False)
    assert asked == []


def test_find_source__an_unknown_revision_is_named(hub: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is taken for a hub id\) cannot be loaded") as caught:
        find_source(HUB_ID, "v3")
    assert caught.value.problems[0].where == f"{HUB_ID} at v3"


@pytest.mark.parametrize(("path", "kind"), [("tiny", "an embedded model"), ("model", "a folder")])
def test_revision__of_what_has_none_is_refused(
    path: str, kind: str, plain_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(plain_folder)
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {{path: {path}, revision: v1}}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    (problem,) = caught.value.problems
    assert problem.what == f"model.revision is v1, but model.path is {kind}: only a hub id has revisions"
    assert problem.fix == "remove model.revision, or set model.path to a hub id"


def test_revision__of_a_checkpoint_in_a_folder_is_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match="only a hub id has revisions"):
        Predictor.from_checkpoint(saved, overrides=["model.revision=v1"])
