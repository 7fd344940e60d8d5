"""From a YAML file, a name and ``--set`` overrides to a :class:`~qwendet.config.Config`.

Every problem is reported at once, with line, dotted key, given value and the nearest known key.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qwendet.config import EMBEDDED_MODELS, Config, Section, inner_section
from qwendet.errors import ConfigError, Problem

PACKAGE_EXAMPLES = Path(__file__).parent / "examples"
REPOSITORY_EXAMPLES = Path(__file__).parent.parent / "examples"
PATH_FIELDS = (
    ("data", "train"), ("data", "val"), ("data", "teachers"), ("data", "root"), ("data", "image_cache"),
)  # fmt: skip

# Keys of the flat files of the original scripts whose new name is not simply section + key.
OLD_NAMES = {
    "detection_enabled": "detection.enabled",
    "model_path": "model.path",
    "model_name_or_path": "model.path",
    "train_data_path": "data.train",
    "val_data_path": "data.val",
    "data_root": "data.root",
    "teacher_pool_file": "data.teachers",
    "num_teacher_samples": "data.num_teachers",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "llm_lr": "train.language_learning_rate",
    "vision_lr": "train.vision_learning_rate",
    "merger_lr": "train.merger_learning_rate",
    "detection_lr": "train.head_learning_rate",
    "lr": "train.learning_rate",
    "detection_num_queries": "detection.num_queries",
    "lr_scheduler_type": "train.lr_scheduler",
    "optim": "train.optimizer",
    "torch_dtype": "model.dtype",
    "max_total_length": "data.max_tokens",
    "dataloader_num_workers": "data.num_workers",
}


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses a key written twice, instead of keeping the last, and references.

    References (``*name``) can nest without end or grow to any size, and no config needs them.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem=f"references such as *{event.anchor} are not read; write the value out",
                problem_mark=event.start_mark,
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key_node.value!r} is written twice",
                        problem_mark=key_node.start_mark,
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config.

    Args:
        name: a path, or a bare name such as ``base_flat_v2``, which means
            ``examples/base_flat_v2.yaml`` in the working directory, then in the package.
        overrides: ``key=value`` with dotted keys, as given to ``--set``.

    Returns:
        The config, with data and output paths made absolute from the file's folder.

    Raises:
        ConfigError: with every problem found.
    """
    path = find_config(name)
    text = _read(path)
    values = _parse_yaml(text, path)
    for override in overrides:
        _apply_override(values, override)
    config = build_config(values, str(path), _line_numbers(text))
    return _with_absolute_paths(config, path.parent.resolve())


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """Change settings of a config that is already loaded, such as a checkpoint's own.

    Raises:
        ConfigError: with every problem found.
    """
    if not overrides:
        return config
    values = config.model_dump(mode="json")
    for override in overrides:
        _apply_override(values, override)
    return build_config(values, "--set")


def find_config(name: str | Path) -> Path:
    """Resolve a path or a bare name to an existing file."""
    path = Path(name)
    if path.is_file():
        return path
    tried = [path]
    if len(path.parts) == 1:
        file_name = path.name if path.suffix in (".yaml", ".yml") else f"{path.name}.yaml"
        for folder in (Path("examples"), PACKAGE_EXAMPLES, REPOSITORY_EXAMPLES):
            tried.append(folder / file_name)
            if tried[-1].is_file():
                return tried[-1]
    raise ConfigError(
        "there is no such config file",
        str(name),
        "give the path of a YAML file, or write one with: qwendet init DIR",
    )


def example_names() -> list[str]:
    """Bare names that :func:`find_config` knows here."""
    folders = (Path("examples"), PACKAGE_EXAMPLES, REPOSITORY_EXAMPLES)
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config ({error})", str(path)) from error


def _parse_yaml(text: str, path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506  # it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not valid YAML: {error.problem}", where) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"not valid YAML: {error}", str(path)) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"expected sections such as model and data, got {type(values).__name__}", str(path))
    return {str(key): value for key, value in values.items()}


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"expected key=value, got {override!r}", "--set", "for example: --set train.max_steps=100"
        )
    for part in parts[:-1]:
        inner = values.get(part)
        if inner is None:
            inner = values[part] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {part} is not a section", "--set")
        values = inner
    try:
        values[parts[-1]] = _number_or(yaml.safe_load(raw))
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {raw!r} is not a YAML value", "--set") from error


def _number_or(value: Any) -> Any:
    """Read ``1e-4`` as the number that YAML 1.1 takes for a text."""
    return float(value) if _looks_like_number(value) else value


def _looks_like_number(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return any(character.isdigit() for character in value)


def build_config(
    values: Mapping[str, Any], source: str, lines: Mapping[tuple[str, ...], int] | None = None
) -> Config:
    """Validate plain values.

    Args:
        values: nested mapping as a YAML file holds it.
        source: name for error messages.
        lines: line number of each key path.

    Raises:
        ConfigError: with every problem found.
    """
    try:
        return Config.model_validate(_lists_to_tuples(values))
    except ValidationError as error:
        problems = [_explain(detail, source, lines or {}) for detail in error.errors()]
        raise ConfigError.of(problems) from error


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lists_to_tuples(inner) for key, inner in value.items()}
    return tuple(_lists_to_tuples(inner) for inner in value) if isinstance(value, list) else value


def _explain(detail: Any, source: str, lines: Mapping[tuple[str, ...], int]) -> Problem:
    path = tuple(str(part) for part in detail["loc"])
    key = ".".join(path)
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
    where = ": ".join(part for part in (f"{source}:{line}" if line else source, key) if part)
    value = detail["input"]
    if detail["type"] == "extra_forbidden":
        return Problem("unknown key", where, _fix_for_unknown(path))
    if detail["type"] == "value_error":
        what, _, fix = str(detail["ctx"]["error"]).partition("; ")
        return Problem(what, where, fix)
    if _looks_like_number(value) and detail["type"] in ("float_type", "int_type"):
        return Problem(
            f"expected a number, got the text {value!r}", where, f"write {_as_yaml_number(value, detail)}"
        )
    return Problem(f"{_lower_first(detail['msg'])}, got {value!r}", where)


def _as_yaml_number(value: str, detail: Any) -> str:
    number = float(value)
    if detail["type"] == "int_type":
        return str(int(number)) if number.is_integer() else "a whole number"
    mantissa, e, exponent = value.partition("e")
    if e:
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}"
    return repr(number)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _fix_for_unknown(path: tuple[str, ...]) -> str:
    key = path[-1]
    if key == "padding_side":
        return "remove it: padding is always left, because Flash Attention and generation need it so"
    known = known_keys()
    if len(path) == 1:
        new_name = OLD_NAMES.get(key) or next((name for name in known if name.split(".")[-1] == key), None)
        if new_name:
            return f"this is a key of the old flat file; it is now {new_name}"
    elif key in OLD_NAMES:
        return f"it is now {OLD_NAMES[key]}"
    siblings = [name for name in known if name.split(".")[:-1] == list(path[:-1])]
    close = difflib.get_close_matches(".".join(path), siblings, n=1, cutoff=0.5)
    if not close:
        close = [name for name in known if name.split(".")[-1] == key]
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(siblings))}"


def known_keys() -> list[str]:
    """Every dotted key of the config, sections included."""
    return _keys_of(Config)


def _keys_of(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        inner = inner_section(field)
        if inner is not None:
            keys += _keys_of(inner, f"{prefix}{name}.")
    return keys


def _line_numbers(text: str) -> dict[tuple[str, ...], int]:
    """Line of each key path of a YAML text that is known to parse."""
    lines: dict[tuple[str, ...], int] = {}
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    pending: list[tuple[tuple[str, ...], Any]] = [((), node)]
    while pending:
        path, current = pending.pop()
        if isinstance(current, yaml.MappingNode):
            for key_node, value_node in current.value:
                inner = (*path, str(key_node.value))
                lines[inner] = key_node.start_mark.line + 1
                pending.append((inner, value_node))
    return lines


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    data = {
        field: str(folder / value)
        for section, field in PATH_FIELDS
        if (value := getattr(getattr(config, section), field)) is not None
    }
    train = {"output_dir": str(folder / config.train.output_dir)}
    model: dict[str, Any] = {"path": _model_path(config.model.path, folder)}
    lora = config.model.lora
    if lora is not None and lora.base is not None:
        model["lora"] = lora.model_copy(update={"base": _model_path(lora.base, folder)})
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "train": config.train.model_copy(update=train),
            "model": config.model.model_copy(update=model),
        }
    )


def _model_path(path: str, folder: Path) -> str:
    """A model's folder made absolute; an embedded model or a hub id as it is."""
    is_folder = path not in EMBEDDED_MODELS and (folder / path).is_dir()
    return str(folder / path) if is_folder else path
