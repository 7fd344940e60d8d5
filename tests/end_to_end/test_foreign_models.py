"""Models that this project did not train: measured as their family or a config says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from benchmarks.narrow_model import write_narrow_model
from benchmarks.worlds import PRETRAIN
from qwendet import Predictor
from qwendet.cli.main import run
from qwendet.config.load import load_config
from qwendet.config.schema import DEFAULT_REQUEST
from qwendet.data.samples import Sample, SampleFile
from qwendet.demo.shapes import write_dataset
from qwendet.demo.tiny import TINY_FOLDER
from qwendet.errors import CheckpointError
from qwendet.evaluation.command import Evaluation, evaluate_model
from qwendet.families.choose import FAMILIES
from qwendet.inference.generation import GeneratedAnswer
from qwendet.loader import config_of_model

PUBLISHED = {
    "Qwen2-VL-2B-Instruct": "qwen2_vl",
    "Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
    "Qwen3-VL-4B-Instruct": "qwen3_vl",
    "Qwen3.5-0.8B": "qwen3_5",
}
SYSTEM_PROMPTS = {"qwen2_vl": "You are a helpful assistant.", "qwen2_5_vl": "You are a helpful assistant."}
PROMPTS = {
    "qwen2_vl": "Output the bounding box of every red ring, dog.",
    "qwen2_5_vl": "Locate every item from the category list in the image and output the coordinates in JSON"
    " format. The category set includes red ring, dog.",
    "qwen3_vl": 'Locate every instance that belongs to the following categories: "red ring, dog".'
    " Report bbox coordinates in JSON format.",
    "qwen3_5": 'Locate every instance that belongs to the following categories: "red ring, dog".'
    " Report bbox coordinates in JSON format.",
}
QUICK = ["model.device=cpu", "model.dtype=float32", "infer.max_new_tokens=60"]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(PRETRAIN, tmp_path_factory.mktemp("scenes") / "test.jsonl", 6, seed=71)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as transformers saves it: no manifest, no head; read only."""
    folder = tmp_path_factory.mktemp("plain")
    transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(TINY_FOLDER).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY_FOLDER).save_pretrained(folder)
    Qwen2VLImageProcessorPil.from_pretrained(TINY_FOLDER).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def narrow(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Narrow random models of published configurations, each written once; read only."""
    folder = tmp_path_factory.mktemp("narrow")

    def write(name: str) -> Path:
        if not (folder / name).is_dir():
            write_narrow_model(shared / "qwen_processor" / name, folder / name)
        return folder / name

    return write


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*words: object, settings: Sequence[str] = QUICK) -> tuple[int, str, str]:
        options = [word for setting in settings for word in ("--set", setting)]
        with pytest.raises(SystemExit) as ended:
            run([*map(str, words), *options])
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out, written.err

    return call


@pytest.fixture
def as_trained(tmp_path: Path) -> Path:
    """How the embedded model was trained, in a file."""
    file = tmp_path / "how.yaml"
    labels = json.dumps(config_of_model("tiny")[0].data.labels)
    file.write_text(f'data: {{request: "{DEFAULT_REQUEST}", labels: {labels}}}\n', encoding="utf-8")
    return file


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def results_of(found: Evaluation) -> list[Any]:
    return [(run.name, run.metrics, run.predictions) for run in found.runs]


# A checkpoint and the same weights saved plainly


def test_eval__plain_weights_measure_what_their_checkpoint_does(
    plain: Path, scenes: Path, as_trained: Path, command: Command, tmp_path: Path
) -> None:
    """Prompt and limits agreeing, text is the same to the last bit; a token at a time, for one has a head."""
    records, a_token_at_a_time = [], ("--set", "infer.draft=off")
    for model, options in (("tiny", ["--mode", "text"]), (plain, ["--config", as_trained])):
        files = ("--json", tmp_path / "x.json")
        code, _, err = command("eval", model, scenes, *files, *options, *a_token_at_a_time)
        assert code == 0, err
        records.append(read(tmp_path / "x.json"))
    ours, foreign = records
    assert foreign["runs"] == ours["runs"]
    assert any(image["detections"] for image in foreign["runs"][0]["predictions"])
    (own,), (told,) = ours["models"].values(), foreign["models"].values()
    assert (own.pop("trained_by"), told.pop("trained_by")) == ("qwendet", "unknown")
    assert told == own
    assert told["prompt"] == DEFAULT_REQUEST


def test_eval__without_a_config_asks_as_the_family_published(
    plain: Path, scenes: Path, command: Command, tmp_path: Path
) -> None:
    code, _, err = command(
        "eval", plain, scenes, "--json", tmp_path / "x.json", "--report", tmp_path / "page"
    )
    assert code == 0, err
    told = (
        f"{plain}: trained by: unknown; prompt: {FAMILIES['qwen2_5_vl'].request}; system prompt: You are a"
        " helpful assistant.; frame: pixels; min pixels: 3136; max pixels: 50176; draft: auto"
    )
    assert told in err
    assert err.endswith(f"qwendet init DIR --data DATA --model {plain}\n")
    record = read(tmp_path / "x.json")
    assert record["labels"] == sorted(record["labels"])
    samples = list(SampleFile(scenes))
    assert set(record["labels"]) == {item.desc for sample in samples for item in sample.student.objects}
    assert [run["source"] for run in record["runs"]] == ["text"]
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert f"<b>{plain}</b>: trained by: unknown; prompt: Locate every item from the category list" in page


def test_predictor__of_a_plain_model(plain: Path, scenes: Path) -> None:
    predictor = Predictor.from_checkpoint(plain, labels=PRETRAIN.labels, overrides=QUICK)
    assert predictor.bundle.detector.head is None
    assert predictor.bundle.manifest is None
    found = predictor.predict_image(scenes.parent / "images" / "test_00000.png")
    assert {detection.source for detection in found.detections} <= {"text"}


def test_processor__in_the_newer_layout_is_read(plain: Path, scenes: Path, tmp_path: Path) -> None:
    """transformers 5 saves a processor as one file, the image processor inside."""
    folder = Path(shutil.copytree(plain, tmp_path / "newer"))
    facts = read(folder / "preprocessor_config.json")
    (folder / "preprocessor_config.json").unlink()
    nested = {"processor_class": "Qwen2_5_VLProcessor", "image_processor": facts}
    (folder / "processor_config.json").write_text(json.dumps(nested), encoding="utf-8")
    first, second = (
        evaluate_model(model, scenes, overrides=["model.device=cpu", "infer.max_new_tokens=8"])
        for model in (plain, folder)
    )
    assert results_of(first) == results_of(second)


# Every family


@pytest.mark.parametrize("name", PUBLISHED)
def test_infer_and_eval__of_every_family(
    name: str, narrow: Callable[[str], Path], scenes: Path, command: Command, tmp_path: Path
) -> None:
    model, family = narrow(name), FAMILIES[PUBLISHED[name]]
    quick = ["model.device=cpu", "infer.max_new_tokens=4"]
    output = tmp_path / "found.jsonl"
    image = scenes.parent / "images" / "test_00000.png"
    words = ("infer", model, image, "--labels", "red ring,dog", "--output", output)
    code, _, err = command(*words, settings=quick)
    assert code == 0, err
    told = {
        "trained_by": "unknown",
        "prompt": family.request,
        "system_prompt": SYSTEM_PROMPTS.get(family.model_type, ""),
        "frame": "pixels" if name == "Qwen2.5-VL-7B-Instruct" else "thousandths",
        "min_pixels": family.limits.min_pixels,
        "max_pixels": family.limits.max_pixels,
        "draft": "auto",
        "tiles": "off",
        "overlap": 0.2,
    }
    assert read(output)["model"] == told
    assert f"{model}: trained by: unknown; prompt: {family.request}" in err
    code, out, err = command("eval", model, scenes, "--format", "json", settings=quick)
    assert code == 0, err
    record = json.loads(out)
    assert record["models"] == {str(model): told}
    assert record["runs"][0]["answers"]["answers"] == 6


@pytest.mark.parametrize("name", PUBLISHED)
def test_prompt__is_the_published_template_with_the_published_request(
    name: str, narrow: Callable[[str], Path], scenes: Path
) -> None:
    model = narrow(name)
    predictor = Predictor.from_checkpoint(model, labels=["red ring", "dog"], overrides=["model.device=cpu"])
    ids = predictor.encoder.encode(SampleFile(scenes)[0], with_answer=False).input_ids.tolist()
    content: list[Any] = [{"type": "image"}, {"type": "text", "text": PROMPTS[PUBLISHED[name]]}]
    published = AutoTokenizer.from_pretrained(model)
    wanted = published.apply_chat_template(
        [{"role": "user", "content": content}],  # the template's own system text
        tokenize=False, add_generation_prompt=True, enable_thinking=False,
    )  # fmt: skip
    images = ids.count(published.convert_tokens_to_ids("<|image_pad|>"))
    assert published.decode(ids) == wanted.replace("<|image_pad|>", "<|image_pad|>" * images)


# How it was trained


def test_config__frame_prompt_and_limits_are_those_of_the_file(
    plain: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Qwen2.5-VL that was fine-tuned elsewhere to answer in thousandths."""
    file = tmp_path / "how.yaml"
    file.write_text(
        "data: {frame: thousandths, system_prompt: Be brief., request: 'Find {labels}.', max_pixels: 12544}\n"
        "detection: {enabled: true}\nmodel: {path: tiny, device: cpu}\n",
        encoding="utf-8",
    )
    text = '[{"bbox_2d": [250, 500, 750, 1000], "label": "dog"}]'
    answer = GeneratedAnswer(text, (len(text),), (0.0,), truncated=False)
    monkeypatch.setattr("qwendet.inference.predictor.generate_answers", lambda *_: [answer])
    predictor = Predictor.from_checkpoint(plain, labels=["dog"], given=load_config(file))
    found = predictor.predict_image(scenes.parent / "images" / "test_00000.png")
    (detection,) = found.detections
    wanted = (found.width / 4, found.height / 2, found.width * 3 / 4, found.height)
    assert detection.bbox_2d == pytest.approx(wanted, abs=0.01)
    assert predictor.bundle.origin() == {
        "trained_by": "unknown", "prompt": "Find {labels}.", "system_prompt": "Be brief.",
        "frame": "thousandths", "min_pixels": 3136, "max_pixels": 12544, "draft": "auto",
        "tiles": "off", "overlap": 0.2,
    }  # fmt: skip


def test_config__what_it_leaves_open_is_the_publications(plain: Path, as_trained: Path) -> None:
    given = load_config(as_trained, ["data.max_tokens=100"])
    config, is_foreign = config_of_model(str(plain), given=given)
    assert (config.data.request, config.data.max_tokens, is_foreign) == (DEFAULT_REQUEST, 100, True)
    bare = given.model_copy(update={"data": type(given.data)(frame="thousandths")})
    config, _ = config_of_model(str(plain), given=bare)
    assert (config.data.request, config.data.max_tokens) == (FAMILIES["qwen2_5_vl"].request, 32_768)
    assert (config.detection.enabled, config.model.path) == (False, str(plain))


# Before and after


def test_compare__shows_what_the_checkpoint_has_over_its_base(
    plain: Path, scenes: Path, command: Command, tmp_path: Path
) -> None:
    """The head has no counterpart in the base: text is measured as well."""
    files = ["--json", tmp_path / "x.json", "--report", tmp_path / "page"]
    code, out, err = command("eval", "tiny", scenes, "--compare", plain, *files)
    assert code == 0, err
    record = read(tmp_path / "x.json")
    assert [run["source"] for run in record["runs"]] == ["head", "text"]
    assert record["notes"] == [f"{plain} answers in text alone: text is measured as well."]
    (comparison,) = record["comparisons"]
    assert (comparison["ours"], comparison["other"]) == ("text", f"{plain} (text)")
    alone = evaluate_model(plain, scenes, overrides=[*QUICK, f"data.labels={json.dumps(record['labels'])}"])
    differences = {item["metric"]: item for item in comparison["differences"]}
    assert differences["AP50"]["other"] == alone.runs[0].metrics["AP50"]
    assert differences["AP50"]["ours"] == record["runs"][1]["metrics"]["AP50"]
    assert {name: model["trained_by"] for name, model in record["models"].items()} == {
        "tiny": "qwendet", str(plain): "unknown"
    }  # fmt: skip
    assert f"{plain}: trained by: unknown; prompt: Locate every item" in err
    assert all(word in out for word in ("before", "after", "difference"))
    assert '<th class="number">before</th>' in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")


def test_compare__of_the_same_weights_differs_in_nothing(
    plain: Path, scenes: Path, as_trained: Path, command: Command
) -> None:
    """`--config` beside a checkpoint is about its base."""
    words = ("eval", "tiny", scenes, "--mode", "text", "--compare", plain, "--config", as_trained)
    code, out, err = command(*words, "--format", "json")
    assert code == 0, err
    (comparison,) = json.loads(out)["comparisons"]
    assert [item["difference"] for item in comparison["differences"]] == [0, 0, 0, 0]


def test_compare__a_head_with_a_base_that_has_none_is_refused(
    plain: Path, scenes: Path, command: Command
) -> None:
    code, _, err = command("eval", "tiny", scenes, "--mode", "head", "--compare", plain)
    assert code == 2
    assert f"mode is head, but {plain} has no head to compare with" in err


# What is refused


def broken(folder: Path, *absent: str) -> Path:
    for name in absent:
        (folder / name).unlink()
    (folder / "model.safetensors").unlink()  # so that nothing but files of settings can be complained of
    return folder


@pytest.mark.parametrize(
    ("name", "absent", "what"),
    [
        ("Qwen3.5-0.8B", "tokenizer.json", "the tokenizer is not the model's: its <|image_pad|> is "),
        ("Qwen3.5-0.8B", "preprocessor_config.json", "Can't load image processor"),
        ("Qwen2-VL-2B-Instruct", "preprocessor_config.json", "Can't load image processor"),
        ("Qwen3-VL-4B-Instruct", "chat_template.jinja", "expected a chat template"),
    ],
)
def test_refusal__of_a_missing_file_comes_before_the_weights(
    name: str,
    absent: str,
    what: str,
    narrow: Callable[[str], Path],
    scenes: Path,
    command: Command,
    tmp_path: Path,
) -> None:
    folder = broken(Path(shutil.copytree(narrow(name), tmp_path / "model")), absent)
    code, _, err = command("eval", folder, scenes)
    assert code == 2
    assert what in err
    assert f"where  {folder}" in err
    assert "Traceback" not in err


def test_refusal__of_a_tokenizer_of_another_family(
    narrow: Callable[[str], Path], scenes: Path, command: Command, tmp_path: Path
) -> None:
    folder = broken(Path(shutil.copytree(narrow("Qwen3.5-0.8B"), tmp_path / "model")))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(narrow("Qwen3-VL-4B-Instruct") / name, folder)
    code, _, err = command("infer", folder, scenes, "--labels", "dog")
    assert code == 2
    what = "its <|image_pad|> is 151655 of 151669 tokens, the model's 248056 of 248320"
    assert f"the tokenizer is not the model's: {what}" in err
    assert "copy the tokenizer's files from the model's origin" in err


def test_refusal__of_quantized_weights(plain: Path, scenes: Path, command: Command, tmp_path: Path) -> None:
    folder = broken(Path(shutil.copytree(plain, tmp_path / "model")))
    settings = read(folder / "config.json") | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    code, _, err = command("eval", folder, scenes)
    assert code == 2
    assert "the weights are quantized (awq), which is not supported" in err


@pytest.mark.parametrize("kept", ["head/detection_head.safetensors", "resume.json"])
def test_refusal__of_a_checkpoint_that_lost_its_manifest(
    kept: str, plain: Path, scenes: Path, command: Command, tmp_path: Path
) -> None:
    """It is not taken for a model of others, whatever of this project's files is left."""
    folder = Path(shutil.copytree(plain, tmp_path / "final"))
    (folder / kept).parent.mkdir(exist_ok=True)
    (folder / kept).touch()
    code, _, err = command("eval", folder, scenes)
    assert code == 2
    assert "the checkpoint has no manifest (qwendet.json)" in err
    with pytest.raises(CheckpointError, match="has no manifest"):
        Predictor.from_checkpoint(folder, labels=["dog"])


def test_refusal__of_data_without_objects(plain: Path, scenes: Path, command: Command) -> None:
    record = json.loads(scenes.read_text(encoding="utf-8").splitlines()[0]) | {"objects": []}
    negatives = scenes.with_name("negatives.jsonl")
    negatives.write_text(json.dumps(record) + "\n", encoding="utf-8")
    code, _, err = command("eval", plain, negatives)
    assert (code, "nothing says what to look for" in err) == (2, True), err
    code, _, err = command("eval", plain, negatives, settings=[*QUICK, "data.labels=[dog]"])
    assert code == 0, err


def test_refusal__of_demonstrations_without_a_pool(plain: Path, scenes: Path, command: Command) -> None:
    code, _, err = command("eval", plain, scenes, "--teachers", "1")
    assert code == 2
    assert "Traceback" not in err
    assert "  fix    " in err


def test_samples__with_demonstrations_of_their_own_are_shown(plain: Path, scenes: Path) -> None:
    """Labels of the demonstrations are labels of the data."""
    first, second, *_ = SampleFile(scenes)
    shown = Sample(first.student, teachers=(second.student,), where="test")
    predictor = Predictor.from_checkpoint(
        plain, overrides=QUICK, labels_of_data=sorted({o.desc for o in second.student.objects})
    )
    assert len(predictor.encoder.encode(shown, with_answer=False).image_grid_thw) == 2
