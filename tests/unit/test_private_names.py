"""Names that torch, transformers, peft and pycocotools do not promise: all that qwendet uses stand here.

A release may rename them, or change what they take, without a word. That is why `pyproject.toml` lets in the
releases that are tested and no later ones. Whoever needs another one adds it here, and whoever raises a bound
learns here what has changed.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Trainer

import qwendet

LIBRARIES = ("torch", "transformers", "accelerate", "accelerate.tracking", "peft", "pycocotools")
BOUNDED = ("accelerate", "peft", "torch", "transformers")
PUBLIC_MODULES = {
    "torch", "torch.nn", "torch.nn.functional", "torch.nn.utils.rnn", "torch.optim",
    "torch.optim.lr_scheduler", "torch.optim.swa_utils", "torch.distributed", "torch.distributed.fsdp",
    "torch.distributed.tensor", "torch.overrides", "torch.utils.data", "transformers", "accelerate",
    "accelerate.tracking", "peft", "pycocotools", "pycocotools.coco", "pycocotools.cocoeval",
    "pycocotools.mask",
}  # fmt: skip
OF_LIBRARIES = (Tensor, nn.Module, PreTrainedConfig, PreTrainedModel, Trainer)
OF_NAMED_TUPLES = {"_asdict", "_fields", "_replace"}

# Each with what it must take; None for what is not called.
PRIVATE: dict[str, tuple[str, ...] | None] = {
    # what a file says: weights by their published names, and bytes by the characters that stand for them
    "transformers.core_model_loading.revert_weight_conversion": ("model", "state_dict"),
    "transformers.convert_slow_tokenizer.bytes_to_unicode": (),
    # what the published vision tower works out of a size
    "transformers.vision_utils.get_vision_position_ids": ("grid_thw", "spatial_merge_size"),
    "transformers.vision_utils.get_vision_window_index": (
        "grid_thw", "spatial_merge_size", "window_size", "patch_size",
    ),
    "transformers.vision_utils.get_vision_interpolation_indices_and_weights": (
        "grid_thw", "num_grid_per_side", "mode", "align_corners", "spatial_merge_size",
    ),
    # in which type each weight is loaded
    "transformers.PreTrainedModel._keep_in_fp32_modules_strict": None,
    # which attention a part computes with, and what accelerate shards one by one
    "transformers.PreTrainedConfig._attn_implementation": None,
    "transformers.PreTrainedModel._no_split_modules": None,
    "transformers.utils.import_utils.is_flash_attn_2_available": (),
    # the Trainer: order of samples, gradients before the update, whole checkpoints, words for broken ones
    "transformers.cache_utils.DynamicLayer": None,  # a draft can be cut out of such a layer, and of no other
    "transformers.Trainer._get_train_sampler": ("self", "train_dataset"),
    "transformers.Trainer._clip_grad_norm": ("self", "model"),
    "transformers.Trainer._created_lr_scheduler": None,
    "transformers.Trainer._get_output_dir": ("self", "trial"),
    "transformers.Trainer._save_optimizer_and_scheduler": ("self", "output_dir"),
    "transformers.trainer.SCHEDULER_NAME": None,
    "accelerate.utils.save_fsdp_optimizer": (
        "fsdp_plugin", "accelerator", "optimizer", "model", "output_dir",
    ),
    "accelerate.utils.broadcast_object_list": ("object_list", "from_process"),
    "transformers.Trainer._prepare_for_training": (
        "self", "max_steps", "train_dataloader", "resume_from_checkpoint",
    ),
    "transformers.Trainer._run_epoch": ("self",),
    "transformers.Trainer._save_checkpoint": ("self", "model", "trial"),
    "transformers.Trainer._load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "transformers.Trainer._load_optimizer_and_scheduler": ("self", "checkpoint"),
    "transformers.Trainer._load_rng_state": ("self", "checkpoint"),
    "transformers.Trainer._load_scaler": ("self", "checkpoint"),
    # layers in 4 bits as plain ones
    "peft.utils.integrations.dequantize_module_weight": ("module",),
    # adapters are merged layer by layer
    "peft.tuners.lora.LoraLayer": None,
    # what a step needs, counted on tensors without numbers
    "torch._subclasses.fake_tensor.FakeTensorMode": None,
    "torch.utils._python_dispatch.TorchDispatchMode": None,
    "torch.utils._pytree.tree_leaves": ("tree", "is_leaf"),
    "torch.utils.weak.WeakIdKeyDictionary": None,
    # a float32 product by oneDNN, where it is the faster one
    "torch.ops.mkldnn._linear_pointwise": None,
    # which boxes an evaluation leaves out of account
    "pycocotools.cocoeval.COCOeval._prepare": ("self",),
    "pycocotools.cocoeval.COCOeval._gts": None,
    "pycocotools.cocoeval.COCOeval._dts": None,
    "pycocotools.cocoeval.COCOeval._paramsEval": None,
}  # fmt: skip


def test_private__every_name_in_use_is_listed_and_no_other(repo_root: Path) -> None:
    exact, attributes = found_in(repo_root / "qwendet")
    listed_attributes = {name.rpartition(".")[2] for name in PRIVATE}
    assert exact - PRIVATE.keys() == set()
    assert attributes - listed_attributes == set()
    unused = {name for name in PRIVATE if name not in exact and name.rpartition(".")[2] not in attributes}
    assert unused == set()


@pytest.mark.parametrize("name", PRIVATE)
def test_private__is_there_and_takes_what_it_is_given(name: str) -> None:
    parent, own = resolve(name.rpartition(".")[0]), name.rpartition(".")[2]
    if parent is torch.ops.mkldnn and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    wanted = PRIVATE[name]
    if not hasattr(parent, own):
        assert f"self.{own} = " in inspect.getsource(parent)
    elif wanted is not None:
        assert tuple(inspect.signature(getattr(parent, own)).parameters)[: len(wanted)] == wanted


@pytest.mark.parametrize("library", BOUNDED)
def test_bounds__let_in_what_is_tested_and_no_later_release(library: str, repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = next(
        requirement.specifier
        for requirement in map(Requirement, project["dependencies"])
        if requirement.name == library
    )
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", (repo_root / "constraints.txt").read_text(), re.MULTILINE))
    tested = Version(pins[library])
    assert tested in allowed
    assert Version(f"{tested.major}.{tested.minor}.99") in allowed
    assert Version(f"{tested.major}.{tested.minor + 1}.0") not in allowed
    assert Version(f"{tested.major}.{tested.minor - 1}.99") not in allowed


# How they are found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from torch.utils._pytree import tree_map", {"torch.utils._pytree.tree_map"}),
        ("from transformers.vision_utils import f", {"transformers.vision_utils.f"}),
        ("from transformers import _x", {"transformers._x"}),
        ("import torch.jit._trace", {"torch.jit._trace"}),
        ("from torch.nn import Linear", set()),
        ("from qwendet.model.head import _own", set()),
    ],
)
def test_imports__private_ones_are_seen(source: str, found: set[str]) -> None:
    assert set(private_imports(ast.parse(source))) == found


def test_attributes__private_ones_are_seen() -> None:
    source = "def _own(): ...\nmodel._buffers\nrow._own\nrow._asdict()\nself._mine\ngetattr(model, '_hook')"
    assert private_attributes([ast.parse(source)]) == {"_buffers", "_hook"}


def test_members__private_ones_are_seen() -> None:
    class Mine(Trainer):
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            self._created_lr_scheduler = True
            self._my_own = 1

    assert set(private_members(Mine)) == {
        "transformers.Trainer._save",
        "transformers.Trainer._created_lr_scheduler",
    }


def found_in(package: Path) -> tuple[set[str], set[str]]:
    """Private imports and members by their full names; private attributes of other objects by their own."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))]
    exact = {name for tree in trees for name in private_imports(tree)}
    for module in modules():
        for own in vars(module).values():
            if inspect.isclass(own) and own.__module__ == module.__name__:
                exact |= set(private_members(own))
    return exact, private_attributes(trees)


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(qwendet.__path__, "qwendet."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def private_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            of = node.module or ""
            names = [f"{of}.{alias.name}" for alias in node.names]
            is_public = of in PUBLIC_MODULES and not any(alias.name.startswith("_") for alias in node.names)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            is_public = all(name in PUBLIC_MODULES for name in names)
        else:
            continue
        if not is_public:
            yield from (name for name in names if name.partition(".")[0] in LIBRARIES)


def private_attributes(trees: list[ast.Module]) -> set[str]:
    """Of objects but ``self``: names that qwendet does not define, or that a library's class has, too."""
    own = {name for tree in trees for node in ast.walk(tree) for name in defined(node)} | OF_NAMED_TUPLES
    own -= {name for name in own if any(hasattr(library, name) for library in OF_LIBRARIES)}
    used = {name for tree in trees for node in ast.walk(tree) for name in read_of_others(node)}
    return {name for name in used - own if re.match(r"_[^_]", name)}


def defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id


def read_of_others(node: ast.AST) -> Iterator[str]:
    is_own = isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls", "super()")
    if isinstance(node, ast.Attribute) and not is_own:
        yield node.attr
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
        yield from (
            arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
        )


def private_members(own: type) -> Iterator[str]:
    """Methods and attributes that a class shares with the library's class that it is derived from."""
    bases = [base for base in own.__mro__[1:] if base.__module__.partition(".")[0] in LIBRARIES]
    if not bases:
        return
    for name in sorted(set(re.findall(r"(?:def |self\.)(_[^_]\w*)", inspect.getsource(own)))):
        for base in bases:
            if name in vars(base) or f"self.{name} = " in source_of(base):
                library = importlib.import_module(base.__module__.partition(".")[0])
                where = library.__name__ if hasattr(library, base.__name__) else base.__module__
                yield f"{where}.{base.__name__}.{name}"
                break


def source_of(base: type) -> str:
    try:
        return inspect.getsource(base)
    except (OSError, TypeError):  # written in C
        return ""


def resolve(name: str) -> Any:
    """The module, class or namespace of a dotted name."""
    first, *others = name.split(".")
    found = importlib.import_module(first)
    for index, other in enumerate(others):
        try:  # the module first: transformers may have a function of its name
            found = importlib.import_module(".".join([first, *others[: index + 1]]))
        except ImportError:
            found = getattr(found, other)
    return found
