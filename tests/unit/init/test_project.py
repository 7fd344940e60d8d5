"""qwendet init: configs that load, data that validates, nothing overwritten and nothing half written."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from PIL import Image

from qwendet.checks.config.suite import require_config_checks
from qwendet.config.load import load_config
from qwendet.config.schema import Config
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.demo.tiny import ASSETS
from qwendet.errors import CheckpointError, ConfigError, DataError
from qwendet.init import project
from qwendet.init.project import InitSummary, init_project
from qwendet.init.render import render
from qwendet.init.values import Setting
from qwendet.progress import Advance, shown_by


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "GENERATED", {"train": 30, "val": 2})


def write_samples(folder: Path, *splits: str, size: tuple[int, int] = (40, 30)) -> Path:
    folder.mkdir(parents=True)
    for split in splits:
        Image.new("RGB", size).save(folder / f"{split}.png")
        record = {"images": [f"{split}.png"], "objects": [{"bbox_2d": [1, 2, 20, 25], "desc": "dot"}]}
        (folder / f"{split}.jsonl").write_text(json.dumps(record) + "\n")
    return folder


def write_voc(folder: Path, *stems: str) -> Path:
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>25</ymax></bndbox>"
    for stem in stems:
        Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / f"{stem}.jpg")
        objects = f"<object><name>dot</name>{box}</object>"
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{objects}</annotation>")
    return folder


def start(
    directory: Path,
    *,
    tiny: bool = False,
    model: str | None = None,
    data: Path | None = None,
    how: Conversion | None = None,
    val: float | None = None,
) -> tuple[InitSummary, Config]:
    summary = init_project(directory, tiny=tiny, model=model, data=data, how=how, val=val)
    return summary, load_config(summary.config)


def test_tiny__is_complete_and_valid(tmp_path: Path) -> None:
    summary, config = start(tmp_path / "p", tiny=True)
    assert summary.next_command == shlex.join(["qwendet", "train", str(tmp_path / "p" / "config.yaml")])
    assert (config.model.path, config.train.batch_size, config.train.max_steps) == ("tiny", 16, 300)
    assert (config.train.learning_rate, config.train.head_learning_rate) == (1e-3, 1e-3)
    assert config.data.labels is not None
    assert config.data.max_pixels == 50_176
    assert config.data.train == str(tmp_path / "p" / "data" / "train.jsonl")
    assert len(list((tmp_path / "p" / "data" / "images").iterdir())) == 32
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["config.yaml", "data"]
    require_config_checks(config)


def test_tiny__is_the_same_every_time(tmp_path: Path) -> None:
    files = [start(tmp_path / name, tiny=True)[0].config.parent / "data/train.jsonl" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_config__has_a_comment_on_each_line(tmp_path: Path) -> None:
    summary, _ = start(tmp_path, data=write_samples(tmp_path / "d", "train"))
    text = summary.config.read_text()
    lines = text.splitlines()[1:]
    assert all("  # " in line for line in lines if line.startswith(" "))
    assert re.search(r"    - dot +# 1 box\n", text)
    assert re.search(
        r"max_tokens: \d+ +# 99.9 % of 1 sample need at most about \d+ tokens; 2\d\d for an image of", text
    )
    assert len(lines) < 25


def test_alone__writes_the_full_model_and_says_what_is_missing(tmp_path: Path) -> None:
    summary, config = start(tmp_path)
    assert config.model.path == "Qwen/Qwen3-VL-4B-Instruct"
    assert config.model.gradient_checkpointing
    assert config.data.max_pixels == 1_280 * 32 * 32
    assert (config.train.batch_size, config.train.gradient_accumulation_steps) == (1, 8)
    assert config.train.learning_rate == 1e-5
    assert summary.next_command.startswith("qwendet validate-config ")
    missing, licence = summary.notes
    assert licence == "Qwen/Qwen3-VL-4B-Instruct is published under this licence: Apache-2.0."
    assert "data/train.jsonl" in missing
    assert re.search(r"path: Qwen/Qwen3-VL-4B-Instruct +# licence: Apache-2.0\n", summary.config.read_text())


@pytest.mark.parametrize(
    ("model", "side", "licence"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", 28, "Apache-2.0"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 28, "Qwen Research, non-commercial"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 28, "Apache-2.0"),
        ("Qwen/Qwen3-VL-8B-Instruct", 32, "Apache-2.0"),
        ("Qwen/Qwen3.5-0.8B", 32, "Apache-2.0"),
        ("Qwen/Qwen3.8-27B", 32, "Apache-2.0"),
        ("me/qwen3-vl-cells", 32, None),
    ],
)
def test_hub_id__has_the_unit_of_the_family_that_its_name_tells(
    tmp_path: Path, model: str, side: int, licence: str | None
) -> None:
    data = write_samples(tmp_path / "d", "train", size=(4000, 3000))
    summary, config = start(tmp_path / "p", model=model, data=data)
    assert config.data.max_pixels == 1_280 * side**2
    assert f"of {side}×{side} pixels" in summary.config.read_text()
    told = [note for note in summary.notes if "licence" in note]
    assert told == ([f"{model} is published under this licence: {licence}."] if licence else [])


@pytest.mark.parametrize("model", ["me/cells", "Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3.5-35B-A3B"])
def test_hub_id__of_no_known_family_is_refused_before_anything_is_written(tmp_path: Path, model: str) -> None:
    with pytest.raises(ConfigError) as caught:
        start(tmp_path / "p", model=model, data=write_voc(tmp_path / "voc", "a"))
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"the family of {model} is not known: its config.json is not on this disk")
    assert problem.fix.startswith(f"fetch its settings first: hf download {model} ")
    assert not (tmp_path / "p").exists()


def test_hub_id__in_the_cache_is_what_its_config_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_model: Callable[[str], Path]
) -> None:
    """Whatever its name is; limits and tokens are those of its files."""
    snapshot = tmp_path / "hub" / "models--me--cells" / "snapshots" / ("0" * 40)
    shutil.copytree(small_model("Qwen3-VL-4B-Instruct"), snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    summary, config = start(tmp_path / "p", model="me/cells", data=write_samples(tmp_path / "d", "train"))
    assert config.model.path == "me/cells"
    text = summary.config.read_text()
    assert "of 32×32 pixels" in text
    assert "of 1 sample need at most" in text
    assert "at most about" not in text


def write_model_config(folder: Path, **settings: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("model_type", "what"),
    [
        ("qwen3_vl_moe", "model_type qwen3_vl_moe is a mixture of experts, which is not supported"),
        ("llava", "model_type llava is no family that is supported"),
    ],
)
def test_model_folder__of_no_family_is_refused_before_anything_is_written(
    tmp_path: Path, model_type: str, what: str
) -> None:
    folder = write_model_config(tmp_path / "weights", model_type=model_type)
    with pytest.raises(CheckpointError, match=re.escape(what)):
        start(tmp_path / "p", model=str(folder), data=write_voc(tmp_path / "voc", "a"))
    assert not (tmp_path / "p").exists()


def test_jsonl_file__is_named_where_it_lies(tmp_path: Path) -> None:
    data = write_samples(tmp_path / "elsewhere", "mine")
    summary, config = start(tmp_path / "p", model="tiny", data=data / "mine.jsonl")
    assert config.data.train == str(data / "mine.jsonl")
    assert config.data.val is None
    assert f"--data {data / 'mine.jsonl'} --model tiny --val 0.1" in summary.notes[0]
    folder, _ = summary.notes[0].partition("qwendet init ")[2].split(maxsplit=1)
    assert Path(folder).resolve() == (tmp_path / "p-val").resolve()  # p has a config now
    require_config_checks(config)


def samples_in(path: str | None) -> int:
    assert path is not None
    return len(Path(path).read_text("utf-8").splitlines())


def test_val__sets_images_aside(tmp_path: Path) -> None:
    data = write_voc(tmp_path / "voc", *"abcdefghij")
    for number, photo in enumerate((data / "JPEGImages").iterdir()):
        Image.new("RGB", (40, 30), (20 * number, 0, 0)).save(photo)
    summary, config = start(tmp_path / "p", model="tiny", data=data, val=0.2)
    assert (samples_in(config.data.train), samples_in(config.data.val)) == (8, 2)
    assert not any("no validation split" in note for note in summary.notes)
    require_config_checks(config)


def test_val__of_samples(tmp_path: Path) -> None:
    """A test split stays what it is; a validation split is not mixed with training."""
    data = write_samples(tmp_path / "d", "train", "test")
    lines = []
    for number in range(10):
        Image.new("RGB", (40, 30), (20 * number, 0, 0)).save(data / f"{number}.png")
        lines.append(json.dumps({"images": [f"{number}.png"], "objects": []}))
    (data / "train.jsonl").write_text("\n".join(lines))
    _, config = start(tmp_path / "p", model="tiny", data=data, val=0.1)
    assert (samples_in(config.data.train), samples_in(config.data.val)) == (9, 1)
    assert samples_in(str(tmp_path / "p" / "data" / "test.jsonl")) == 1
    shutil.copy(data / "test.jsonl", data / "val.jsonl")
    with pytest.raises(ConfigError, match="there is a validation split already"):
        start(tmp_path / "q", model="tiny", data=data, val=0.1)
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("source", ["auto", "jsonl"])
def test_image_dir__of_samples_becomes_the_root(tmp_path: Path, source: str) -> None:
    data = write_samples(tmp_path / "d", "train")
    (tmp_path / "pictures").mkdir()
    (data / "train.png").rename(tmp_path / "pictures" / "train.png")
    how = Conversion(source, image_dir=tmp_path / "pictures")
    for path in (data, data / "train.jsonl"):
        _, config = start(tmp_path / path.name, model="tiny", data=path, how=how)
        assert config.data.root == str(tmp_path / "pictures")
        require_config_checks(config)


def test_image_dir__of_another_format(tmp_path: Path) -> None:
    data = write_voc(tmp_path / "voc", "a")
    (data / "JPEGImages").rename(tmp_path / "pictures")
    _, config = start(
        tmp_path / "p", model="tiny", data=data, how=Conversion("voc", image_dir=tmp_path / "pictures")
    )
    assert samples_in(config.data.train) == 1
    require_config_checks(config)


def test_skip_bad__is_counted(tmp_path: Path) -> None:
    data = write_voc(tmp_path / "voc", "a", "b")
    (data / "Annotations" / "b.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="expected an XML annotation"):
        start(tmp_path / "p", model="tiny", data=data)
    summary, config = start(tmp_path / "p", model="tiny", data=data, how=Conversion(skip_bad=True))
    assert (samples_in(config.data.train), summary.left_out) == (1, 1)
    assert "b.xml" in (tmp_path / "p" / "data" / "left-out.txt").read_text()


@pytest.mark.parametrize(("how", "val"), [(Conversion("voc"), None), (None, 0.1)])
def test_options_about_data__need_data(tmp_path: Path, how: Conversion | None, val: float | None) -> None:
    with pytest.raises(ConfigError, match="are about --data, which is not given"):
        start(tmp_path / "p", model="tiny", how=how, val=val)


def test_links_of_a_cache__are_named_where_they_lie(tmp_path: Path) -> None:
    """Their files are links to names without meaning, in another folder than the images."""
    data = write_samples(tmp_path / "snapshots", "train")
    (tmp_path / "blobs").mkdir()
    for name in ("train.jsonl", "train.png"):
        (data / name).rename(tmp_path / "blobs" / name.replace(".", ""))
        (data / name).symlink_to(tmp_path / "blobs" / name.replace(".", ""))
    _, config = start(tmp_path / "p", model="tiny", data=data)
    assert config.data.train == str(data / "train.jsonl")
    require_config_checks(config)


def test_dense__room_for_every_box(tmp_path: Path) -> None:
    data = write_samples(tmp_path / "d", "train", size=(400, 400))
    boxes = [
        {"bbox_2d": [x, y, x + 9, y + 9], "desc": "dot"} for x in range(0, 400, 20) for y in range(0, 400, 20)
    ]
    (data / "train.jsonl").write_text(json.dumps({"images": ["train.png"], "objects": boxes}))
    _, config = start(tmp_path / "p", model="tiny", data=data)
    assert (config.detection.num_queries, config.infer.max_detections) == (600, 600)


@pytest.mark.parametrize("model", ["tiny", "Qwen/Qwen3-VL-4B-Instruct"])
def test_small_objects__are_accepted_which_is_said(tmp_path: Path, model: str) -> None:
    """The config passes its own check, and the way out is named."""
    data = write_samples(tmp_path / "d", "train", size=(2000, 2000))
    boxes = [{"bbox_2d": [x, 5, x + 9, 14], "desc": "dot"} for x in range(0, 2000, 20)]
    (data / "train.jsonl").write_text(json.dumps({"images": ["train.png"], "objects": boxes}))
    summary, config = start(tmp_path / "p", model=model, data=data)
    assert config.data.allow == ("config.images.small_objects",)
    (note,) = [note for note in summary.notes if note.startswith("Objects are small")]
    assert "where one image token covers" in note
    assert f"qwendet data tile {data} DST --tiles" in note
    require_config_checks(config)


def test_many_labels__some_are_asked_at_a_time_which_is_said(tmp_path: Path) -> None:
    data = write_samples(tmp_path / "d", "train")
    boxes = [{"bbox_2d": [1, 2, 20, 25], "desc": f"kind of thing number {number}"} for number in range(600)]
    (data / "train.jsonl").write_text(json.dumps({"images": ["train.png"], "objects": boxes}))
    summary, config = start(tmp_path / "p", model="tiny", data=data)
    most = config.data.labels_per_request
    assert most is not None
    assert 30 < most < 300
    (note,) = [note for note in summary.notes if "labels_per_request" in note]
    assert re.match(rf"600 labels would take [\d,]+ tokens of each request: .* is {most}; see docs", note)


def test_expressions__each_sample_asks_its_own(tmp_path: Path) -> None:
    data = write_samples(tmp_path / "d", "train")
    found = {"bbox_2d": [1, 2, 20, 25], "desc": "the dot left"}
    line = {"images": ["train.png"], "objects": [found], "labels": ["the dot left"]}
    (data / "train.jsonl").write_text(json.dumps(line))
    _, config = start(tmp_path / "p", model="tiny", data=data)
    assert config.data.labels == ("object",)
    assert config.data.labels_per_request is None


def test_folder__splits_become_training_and_validation(tmp_path: Path) -> None:
    data = write_samples(tmp_path / "p" / "data", "train", "val", "test")
    summary, config = start(tmp_path / "p", model="tiny", data=data)
    assert "train: data/train.jsonl" in summary.config.read_text()
    assert config.data.val == str(data / "val.jsonl")
    assert str(data / "test.jsonl") in summary.notes[-1]


def test_broken_data__leaves_no_folder(tmp_path: Path) -> None:
    data = write_voc(tmp_path / "voc", "a")
    (data / "JPEGImages" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError):
        start(tmp_path / "new" / "p", model="tiny", data=data)
    assert not (tmp_path / "new").exists()


def test_folder__without_training_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected train.jsonl or all.jsonl"):
        start(tmp_path / "p", data=write_samples(tmp_path / "d", "val"))
    assert not (tmp_path / "p").exists()


def test_voc__is_converted_beside_the_config(tmp_path: Path) -> None:
    summary, config = start(tmp_path / "p", model="tiny", data=write_voc(tmp_path / "voc", "a", "b"))
    assert config.data.train == str(tmp_path / "p" / "data" / "all.jsonl")
    assert config.data.val is None
    assert "no validation split" in summary.notes[-1]
    require_config_checks(config)


@pytest.mark.parametrize("size", [(640, 480), (224, 224), (100, 80)])
def test_tiny_model__is_given_64_image_tokens_at_most(tmp_path: Path, size: tuple[int, int]) -> None:
    data = write_samples(tmp_path / "d", "train", size=size)
    _, config = start(tmp_path / "p", model="tiny", data=data)
    assert config.data.max_pixels == 50_176
    assert (config.train.batch_size, config.train.max_steps) == (8, 300)


def test_broken_image__is_left_to_validate(tmp_path: Path) -> None:
    data = write_samples(tmp_path / "d", "train")
    (data / "train.png").unlink()
    _, config = start(tmp_path / "p", model="tiny", data=data)
    assert config.data.max_pixels == 50_176
    assert config.data.max_tokens == 8192


def write_coco(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "images" / "a.jpg")
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}],
        "categories": [{"id": 3, "name": "dot"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 19, 23]}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def write_yolo(folder: Path) -> Path:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "images" / "a.jpg")
    (folder / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "classes.txt").write_text("dot\n")
    return folder


@pytest.mark.parametrize("write", [write_coco, write_yolo])
def test_coco_and_yolo__are_converted_beside_the_config(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    summary, config = start(tmp_path / "p", model="tiny", data=write(tmp_path / "source"))
    assert config.data.train == str(tmp_path / "p" / "data" / "all.jsonl")
    assert "no validation split" in summary.notes[-1]
    require_config_checks(config)


def test_config__is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="there is a config already"):
        start(tmp_path, tiny=True)
    assert (tmp_path / "config.yaml").read_text() == "mine"
    assert not (tmp_path / "data").exists()


def test_generated_data__overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigError, match="expected no folder of this name"):
        start(tmp_path, tiny=True)
    assert not (tmp_path / "config.yaml").exists()


def test_interrupted_drawing__leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(project, "write_dataset", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "p", tiny=True)
    assert not (tmp_path / "p").exists()


def test_tiny_with_data__is_refused_with_the_right_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        start(tmp_path, tiny=True, data=tmp_path / "my data")
    (problem,) = caught.value.problems
    assert "--model tiny --data" in problem.fix
    assert f"'{tmp_path / 'my data'}'" in problem.fix


def test_model_folder__is_named_as_seen_from_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model_config(tmp_path / "weights", model_type="qwen3_5")
    with pytest.raises(CheckpointError, match="pixel limits and patch size cannot be read"):
        start(tmp_path / "p", model=str(tmp_path / "weights"))
    size = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    record = json.dumps({"size": size, "patch_size": 16, "merge_size": 2})
    (tmp_path / "weights" / "preprocessor_config.json").write_text(record)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no tokenizer\.json beside config\.json"):
        start(tmp_path / "p", model="weights")
    shutil.copy(ASSETS / "tiny" / "tokenizer.json", tmp_path / "weights")
    _, config = start(tmp_path / "p", model="weights")
    assert config.model.path == str(tmp_path / "weights")
    assert config.data.max_pixels == 1_280 * 32 * 32


@pytest.mark.parametrize(
    "name", ["a: b # c", "'quoted'", "tab\tand\nline", "ünïcode 🦆", "- x", "null", "*a", "1e5"]
)
def test_odd_names__survive_the_yaml(tmp_path: Path, name: str) -> None:
    settings = {
        "train": Setting(name),
        "labels": Setting([name], "", ("1 box",)),
        "max_pixels": Setting(None),
    }
    text = render({"data": settings, "train": {"epochs": Setting(1e-5)}})
    assert yaml.safe_load(text) == {
        "data": {"train": name, "labels": [name], "max_pixels": None},
        "train": {"epochs": 1e-5},
    }


def test_odd_folder__loads(tmp_path: Path) -> None:
    data = write_samples(tmp_path / "my: data #1", "train", "val")
    _, config = start(tmp_path / "p", model="tiny", data=data)
    assert config.data.train == str(data / "train.jsonl")


def test_convert__refuses_jsonl(tmp_path: Path) -> None:
    data = write_samples(tmp_path / "d", "train")
    with pytest.raises(DataError, match="this is JSONL already"):
        convert_dataset(data, tmp_path / "out", Conversion())


def test_convert__tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[object] = []

    @contextmanager
    def tracker(description: str, total: int) -> Iterator[Advance]:
        told.append((description, total))
        yield lambda finished, text: told.append((finished, text))

    with shown_by(tracker):
        convert_dataset(write_voc(tmp_path / "voc", "a", "b"), tmp_path / "out", Conversion("voc"))
    assert told == [("reading voc", 2), (1, ""), (2, ""), ("placing images of voc", 2), (1, ""), (2, "")]
