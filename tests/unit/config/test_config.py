"""Config files: every mistake named at once, with its line and how to fix it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qwendet.config.load import build_config, find_config, load_config
from qwendet.config.old_keys import REMOVED, RENAMED
from qwendet.config.problems import known_keys
from qwendet.config.schema import Config
from qwendet.errors import ConfigError, Problem

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_config(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_config


def problems_of(path: Path, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return caught.value.problems


def test_empty_file__is_all_defaults(write: Write) -> None:
    config = load_config(write(""))
    assert config.model.path == "tiny"
    assert config.loss.teacher_loss_weight == 0.3
    assert config.detection.enabled


def test_paths__start_from_the_config(write: Write, tmp_path: Path) -> None:
    config = load_config(write("data: {train: a/train.jsonl, root: /images}\ntrain: {output_dir: out}\n"))
    assert config.data.train == str(tmp_path / "a/train.jsonl")
    assert config.data.root == "/images"
    assert config.data.val is None
    assert config.train.output_dir == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("data", "key", "what", "fix"),
    [
        (
            "train: [{path: a, weigth: 2}]", "train.0.weigth", "unknown key",
            "did you mean data.train.0.weight?",
        ),
        (
            "train: [{path: a, weight: 0}]", "train.0.weight", "expected a number greater than 0, got 0",
            "the default is 1.0",
        ),
        ("train: [{weight: 1}]", "train.0.path", "this key must be given", "add it"),
        (
            "train: [3]", "train.0", "expected a section with keys of its own, got 3",
            "known here: path, weight",
        ),
        (
            "augment: [{name: crop, zzz: 1}]", "augment.0.zzz", "unknown key",
            "known here: data.augment.0.min_visible, data.augment.0.name, data.augment.0.probability,"
            " data.augment.0.range",
        ),
        ("augment: [{name: crp}]", "augment.0.name", "expected 'horizontal_flip', ", "did you mean crop?"),
    ],
)  # fmt: skip
def test_mistake_in_a_list__is_named_with_what_is_known_there(
    write: Write, data: str, key: str, what: str, fix: str
) -> None:
    path = write(f"data:\n  {data}\n")
    (problem,) = problems_of(path)
    assert (problem.where, problem.fix) == (f"{path}:2: data.{key}", fix)
    assert problem.what.startswith(what)


def test_all_problems__are_told_at_once(write: Write) -> None:
    path = write("model:\n  pth: x\ntrain:\n  batch_size: 0\n  seed: a\n")
    found = problems_of(path)
    assert [problem.where for problem in found] == [
        f"{path}:2: model.pth",
        f"{path}:4: train.batch_size",
        f"{path}:5: train.seed",
    ]
    assert found[0].fix == "did you mean model.path?"
    assert "got 0" in found[1].what
    assert "got 'a'" in found[2].what


@pytest.mark.parametrize(
    ("key", "new_name"),
    [
        ("detection_enabled: true", "detection.enabled"),
        ("teacher_loss_weight: 0.3", "loss.teacher_loss_weight"),
        ("lr: 1.0e-4", "train.learning_rate"),
        ("attn_implementation: sdpa", "model.attn_implementation"),
        ("teacher_ratio: 0.5", "data.teacher_ratio"),
        ("train_data_path: x.jsonl", "data.train"),
    ],
)
def test_old_flat_key__is_told_its_new_name(write: Write, key: str, new_name: str) -> None:
    (problem,) = problems_of(write(key))
    assert problem.fix == f"this is a key of the old flat file; it is now {new_name}"


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        (
            "tb_dir: tb",
            "this is a key of the old flat file; remove it: TensorBoard's files are in train.output_dir",
        ),
        (
            "data: {image_cache: kept}",
            "remove it: data.num_workers is how many processes decode and resize images ahead of training",
        ),
    ],
)
def test_key_without_a_new_name__is_told_what_to_do(write: Write, text: str, fix: str) -> None:
    (problem,) = problems_of(write(text))
    assert problem.fix == fix


def test_old_keys__lead_to_keys_that_exist_and_to_none_that_was_kept() -> None:
    assert set(RENAMED.values()) <= set(known_keys())
    assert not set(REMOVED) & set(RENAMED)
    assert not set(REMOVED) & {key.split(".")[-1] for key in known_keys()}


@pytest.mark.parametrize(
    "text", ["padding_side: right", "data: {padding_side: left}", "model: {padding_side: right}"]
)
def test_padding_side__is_refused_with_the_reason(write: Write, text: str) -> None:
    (problem,) = problems_of(write(text))
    assert "padding is always left, because Flash Attention" in problem.fix


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "+0.1e-3"])
def test_number_with_an_exponent__is_a_number(write: Write, text: str) -> None:
    path = write(f"train:\n  learning_rate: {text}\n")
    assert load_config(path).train.learning_rate == 1e-4
    assert load_config(write(""), [f"train.learning_rate={text}"]).train.learning_rate == 1e-4


def test_number_in_quotes__is_a_text(write: Write) -> None:
    (problem,) = problems_of(write("train:\n  learning_rate: '0.5'\n"))
    assert (problem.what, problem.fix) == ("expected a valid number, got '0.5'", "the default is 1.0e-05")


def test_infinite_number__is_refused(write: Write) -> None:
    assert problems_of(write("train:\n  max_steps: 1e999\n"))


def test_override__changes_one_setting_and_no_other(write: Write) -> None:
    config = load_config(write("train: {batch_size: 3}"), ["train.learning_rate=1e-4", "train.max_steps=5"])
    assert (config.train.learning_rate, config.train.max_steps, config.train.batch_size) == (1e-4, 5, 3)


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("train.max_steps", "--set"),
        ("=1", "--set"),
        ("train..x=1", "--set"),
        ("data.labels=[a", "--set data.labels=[a"),
        ("train.seed.x=1", "--set train.seed.x=1"),
        ("train.max_stps=1", "--set train.max_stps"),
        ("train.seed=-1", "--set train.seed"),
        ("train=3", "--set train"),
    ],
)
def test_override__that_cannot_be_read(write: Write, override: str, where: str) -> None:
    (problem,) = problems_of(write("train: {seed: 1}"), override)
    assert problem.where == where
    assert problem.fix


def test_override__does_not_move_other_problems(write: Write) -> None:
    path = write("train:\n  seed: -1\n  epochs: 0")
    problems = problems_of(path, "train.epochs=-2")
    assert {problem.where for problem in problems} == {f"{path}:2: train.seed", "--set train.epochs"}


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['echo no']",
        "model: !!python/name:os.system",
        "a: !unknown 1",
        "a: [",
        "- 1",
        "just text",
        "\t",
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "? [1, 2]\n: 3",
    ],
)
def test_yaml__that_is_no_plain_mapping(write: Write, text: str) -> None:
    assert problems_of(write(text))


def test_key_twice__names_the_line(write: Write) -> None:
    (problem,) = problems_of(write("train:\n  seed: 1\n  seed: 2\n"))
    assert "'seed' is written twice" in problem.what
    assert problem.where.endswith("config.yaml:3")


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe")
    (problem,) = problems_of(path)
    assert problem.what == "the config is not UTF-8 (invalid start byte)"
    assert problem.fix == "save it as UTF-8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {request: find it}", "data.request must contain {labels}"),
        ("data: {min_pixels: 10, max_pixels: 5}", "data.min_pixels (10) is above data.max_pixels (5)"),
        ("data: {labels: [a, a]}", "names a label twice"),
        ("detection: {enabled: false}\ninfer: {mode: head}", "there is no head"),
        ("loss: {detection_loss_weight: 0.0}", "it would stay random"),
        ("loss: {student_loss_weight: .nan}", "finite number"),
        ("train: {learning_rate: 0.0, head_learning_rate: 0.0}", "every learning rate is 0"),
        (
            "model: {dtype: bfloat16}\ntrain: {autocast: none}",
            "train.autocast is none but model.dtype is bfloat16",
        ),
        ("train: {weights: bfloat16}", "train.optimizer is adamw_torch, which rounds most steps away in it"),
        (
            "train: {weights: bfloat16, optimizer: stable_adamw, weight_decay: 0.1}",
            "decay by train.weight_decay (0.1) times a learning rate is rounded away",
        ),
        (
            "model: {dtype: float32}\ntrain: {weights: bfloat16, optimizer: stable_adamw}",
            "train.weights is bfloat16 but model.dtype is float32",
        ),
    ],
)
def test_contradiction__is_refused(write: Write, text: str, message: str) -> None:
    assert any(message in problem.what for problem in problems_of(write(text)))


def test_all_weights_zero__is_refused(write: Write) -> None:
    names = ("teacher_loss_weight", "student_loss_weight", "lm_loss_weight", "detection_loss_weight")
    text = "loss:\n" + "".join(f"  {name}: 0.0\n" for name in names)
    assert "every loss weight is 0" in problems_of(write(text))[0].what


def test_bare_name__is_looked_for_in_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "mine.yaml").write_text("")
    assert find_config("mine") == Path("examples/mine.yaml")
    with pytest.raises(ConfigError, match="no such config file"):
        find_config("yours")


def test_every_field__says_what_it_is() -> None:
    for section, field in Config.model_fields.items():
        assert field.annotation is not None
        for name, inner in field.annotation.model_fields.items():
            assert inner.description, f"{section}.{name} has no docstring"


def ends_well(read: Callable[[], Config]) -> bool:
    """Whether reading gives a config, or an error that says something."""
    try:
        return isinstance(read(), Config)
    except ConfigError as error:
        return all(problem.what for problem in error.problems)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from([key.split(".")[-1] for key in known_keys()]) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_mapping__is_a_config_or_a_config_error(values: dict[str, object]) -> None:
    assert ends_well(lambda: build_config(values, "x.yaml"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "config.yaml"


@given(key=st.sampled_from([key for key in known_keys() if "." in key]), value=VALUES)
def test_any_value_of_a_known_key__never_ends_in_a_traceback(scratch: Path, key: str, value: object) -> None:
    values: object = value
    for name in reversed(key.split(".")):
        values = {name: values}
    scratch.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert ends_well(lambda: load_config(scratch))


@given(st.text(max_size=40))
def test_any_text__never_ends_in_a_traceback(scratch: Path, text: str) -> None:
    scratch.write_text(text, encoding="utf-8")
    assert ends_well(lambda: load_config(scratch))


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_override__never_ends_in_a_traceback(scratch: Path, key: str, value: str) -> None:
    scratch.write_text("", encoding="utf-8")
    assert ends_well(lambda: load_config(scratch, [f"{key}={value}", f"train.seed={value}"]))
