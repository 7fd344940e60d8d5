"""From a YAML file, a name and ``--set`` overrides to a :class:`~qwendet.config.schema.Config`.

Every problem is reported at once, with line, dotted key, given value and the nearest known key.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qwendet.config.problems import Places, explain
from qwendet.config.schema import EMBEDDED_MODELS, Config, require_hub_id
from qwendet.errors import ConfigError
from qwendet.files import find_folder, is_url

PACKAGE_EXAMPLES = Path(__file__).parents[1] / "examples"
REPOSITORY_EXAMPLES = Path(__file__).parents[2] / "examples"
DATA_PATHS = ("train", "val", "teachers", "root")
YAML_FIX = "indent with blanks, and put texts that hold : or # into quotes"
KINDS: Mapping[type, str] = {list: "a list", str: "a text"}


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
                        problem=f"the key {key_node.value!r} is written twice; remove one of them",
                        problem_mark=key_node.start_mark,
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-4, which has no point, for a text; YAML 1.2 does not.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config.

    Args:
        name: a path, or a bare name such as ``base_flat_v2``, which means
            ``examples/base_flat_v2.yaml`` in the working directory, then in the package.
        overrides: ``key=value`` with dotted keys, as given to ``--set``.

    Returns:
        The config, with data and output paths made absolute from the file's folder.
    """
    path = find_config(name)
    text = _read(path)
    values = _parse_yaml(text, path)
    overridden = [_apply_override(values, override) for override in overrides]
    config = build_config(values, str(path), _line_numbers(text), overridden)
    return _with_absolute_paths(config, path.parent.resolve())


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """Change settings of a config that is already loaded, such as a checkpoint's own."""
    if not overrides:
        return config
    values = config.model_dump(mode="json")
    overridden = [_apply_override(values, override) for override in overrides]
    return build_config(values, "", overridden=overridden)


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
    what, fix = (
        "there is no such config file",
        "give the path of a YAML file, or write one with: qwendet init DIR",
    )
    if path.is_dir():
        what = "expected a config file, got a folder"
        fix = f"give {path / 'config.yaml'}" if (path / "config.yaml").is_file() else fix
    raise ConfigError(what, str(name), fix)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        fix = f"chmod +r {shlex.quote(str(path))}, or give another file"
        raise ConfigError(f"cannot read the config ({error.strerror})", str(path), fix) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the config is not UTF-8 ({error.reason})", str(path), "save it as UTF-8"
        ) from error


def _parse_yaml(text: str, path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506  # it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what, _, fix = str(error.problem).partition("; ")
        raise ConfigError(f"not valid YAML: {what}", where, fix or YAML_FIX) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"not valid YAML: {error}", str(path), YAML_FIX) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        what = f"expected sections such as model and data, got {KINDS.get(type(values), 'one value')}"
        raise ConfigError(
            what, str(path), "see one that works, with a comment on each line: qwendet init DIR"
        )
    return {str(key): value for key, value in values.items()}


def _apply_override(values: dict[str, Any], override: str) -> tuple[str, ...]:
    """Put a ``--set`` into plain values; returns its key path."""
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
            shorter = ".".join(parts[: parts.index(part) + 1])
            what = f"{shorter} holds one value and no keys of its own"
            raise ConfigError(what, f"--set {override}", f"write --set {shorter}=…")
        values = inner
    try:
        values[parts[-1]] = yaml.load(raw, Loader=_UniqueKeyLoader)  # noqa: S506  # it is a SafeLoader
    except yaml.YAMLError as error:
        fix = "write a list as [a, b], and put other signs into quotes: --set 'key=\"a: b\"'"
        raise ConfigError(f"{raw!r} is not a YAML value", f"--set {override}", fix) from error
    return tuple(parts)


def build_config(
    values: Mapping[str, Any],
    source: str,
    lines: Mapping[tuple[str, ...], int] | None = None,
    overridden: Collection[tuple[str, ...]] = (),
) -> Config:
    """Validate plain values."""
    try:
        return Config.model_validate(_lists_to_tuples(values))
    except ValidationError as error:
        places = Places(source, lines or {}, frozenset(overridden))
        problems = [explain(detail, places) for detail in error.errors()]
        raise ConfigError.of(problems) from error


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lists_to_tuples(inner) for key, inner in value.items()}
    return tuple(_lists_to_tuples(inner) for inner in value) if isinstance(value, list) else value


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
    data: dict[str, Any] = {
        field: _absolute(value, folder)
        for field in DATA_PATHS
        if isinstance(value := getattr(config.data, field), str)
    }
    if config.data.train is not None and "train" not in data:
        data["train"] = tuple(
            source.model_copy(update={"path": _absolute(source.path, folder)})
            for source in config.data.sources("train")
        )
    train = {"output_dir": str(folder / config.train.output_dir)}
    model: dict[str, Any] = {"path": _model_path(config.model.path, folder)}
    require_hub_id(config.model.model_copy(update=model))
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


def _absolute(path: str, folder: Path) -> str:
    return path if is_url(path) else str(folder / path)


def _model_path(path: str, folder: Path) -> str:
    """A model's folder made absolute; an embedded model or a hub id as it is."""
    is_folder = path not in EMBEDDED_MODELS and find_folder(folder / path)
    return str(folder / path) if is_folder else path
