"""THE loader: every command builds the model, the processor and the prompts here and nowhere else.

    Config ─► load(config, for_inference) ─► Bundle(detector, processor, config with everything resolved)

``for_inference`` changes the module's mode and where the weights may come from; it changes nothing
that alters an output.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from qwendet.config.schema import Config, LoraConfig, require_hub_id
from qwendet.data.labels import resolve_labels
from qwendet.encoding.collate import StandardDataCollator
from qwendet.encoding.encode import Encoder
from qwendet.errors import CheckpointError, ConfigError
from qwendet.families.choose import family_of
from qwendet.families.family import Family
from qwendet.loading.checkpoint import load_base_weights, load_head_weights, verify_parameters
from qwendet.loading.environment import resolve_environment
from qwendet.loading.lora import add_adapter, fingerprint, load_adapter
from qwendet.loading.manifest import Manifest, find_manifest, read_manifest, verify_files
from qwendet.loading.processor import ImageTextProcessor, load_processor, require_fitting
from qwendet.loading.weights import base_config, end_with_turn, explained_load_errors, load_vlm
from qwendet.model.build_head import NEW_HEAD, build_head
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import DetectionHead
from qwendet.model.precision import AUTOCAST, float32_or_wider, group_of, trained_in_float32
from qwendet.source import Source, find_source

logger = logging.getLogger("qwendet")

# What an adapter's parameters depend on.
ADAPTER_SHAPE = ("rank", "alpha", "targets", "load_in_4bit")
MOST_TOKENS = 32_768
"""Of a sample to a model that was trained elsewhere: the shortest published context of the families."""


@dataclass(frozen=True)
class Interface:
    """How a model is asked and its answers are read: all but the weights.

    Attributes:
        processor: tokenizer, chat template and image processor.
        config: the config with label set and pixel limits resolved, of a :class:`Bundle` everything.
        manifest: of ``model.path``; ``None`` if this project did not train it.
    """

    processor: ImageTextProcessor
    config: Config
    manifest: Manifest | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The label set, in the order of request and class logits."""
        return self.config.data.labels or ()

    @property
    def request_labels(self) -> tuple[str, ...]:
        """Those of one request: the first of the set, where ``data.labels_per_request`` is less than all."""
        return self.labels[: self.config.data.labels_per_request]

    def origin(self) -> dict[str, Any]:
        """Who trained the model, and how it is asked: what results are recorded with."""
        data = self.config.data
        return {
            "trained_by": "unknown" if self.manifest is None else "qwendet",
            "prompt": data.request,
            "system_prompt": data.system_prompt,
            "frame": self.processor.family.frame,
            "min_pixels": data.min_pixels,
            "max_pixels": data.max_pixels,
            "draft": self.config.infer.draft,
            "tiles": self.config.infer.tiles,
            "overlap": self.config.infer.overlap,
        }

    def encoder(self) -> Encoder:
        """What turns this model's samples into tokens and pixels."""
        return Encoder(self.processor, self.labels, self.config.data)


@dataclass(frozen=True)
class Bundle(Interface):
    """A model and all that belongs to it."""

    detector: Qwen25VLWithDetection = field(kw_only=True)

    @property
    def has_new_head(self) -> bool:
        """Whether the head's weights are not ``model.path``'s, but drawn."""
        return self.detector.head is not None and (self.manifest is None or self.manifest.head is None)

    def collator(self, *, packing: bool = False) -> StandardDataCollator:
        """What turns this model's encoded samples into a batch."""
        return StandardDataCollator(
            self.processor.tokenizer.pad_token_id,
            self.processor.image_processor.merge_size,
            packing=packing,
        )


def load(config: Config, *, for_inference: bool, weights: Mapping[str, Tensor] | None = None) -> Bundle:
    """Build the model that a config describes.

    Args:
        config: its ``model.path`` is ``tiny``, a directory with or without a manifest, or a hub id.
        for_inference: evaluation mode on the config's device, and every weight must come from
            ``model.path``; for training a head that is not there yet is built with ``train.seed``.
        weights: of the base model, under the names that files give them, if they are in memory: they are
            copied, and no file of them is read.

    Returns:
        The model with everything that was left open resolved and recorded.

    Raises:
        CheckpointError: for missing, unexpected or changed weights.
        DataError: if there is no label set.
        EnvironmentLacksError: if a named device, dtype or attention is not to be had here.
    """
    require_hub_id(config.model)
    data = config.data.model_copy(update={"labels": resolve_labels(config)})
    # What the machine lacks is an error before anything is downloaded.
    config = resolve_environment(config.model_copy(update={"data": data}))
    origin, manifest = _source(config.model.path, config.model.revision)
    base = _base_of_adapter(config, manifest)
    processor = _processor(config, origin, base or origin, manifest)
    in_float32 = _in_float32(config, manifest, processor.family, for_inference=for_inference)
    vlm = load_vlm(str((base or origin).folder), config.model, weights, in_float32)
    end_with_turn(vlm.generation_config, processor.tokenizer)
    head = build_head(
        config, vlm.config, None if manifest is None else manifest.head, for_inference=for_inference
    )
    if head is not None:
        head.labels.centre_on(vlm.get_input_embeddings().get_parameter("weight"))
        head.to(float32_or_wider(vlm.dtype))
    detector = Qwen25VLWithDetection(vlm, head, AUTOCAST[config.train.autocast])
    if base is not None and manifest is not None:
        config = _with_adapter(detector, config, base, manifest.config.model.lora)
        load_adapter(vlm, origin.folder)
    if manifest is not None:
        _verify(detector, manifest, origin.folder)
    if base is None and config.model.lora is not None:
        if for_inference:
            raise CheckpointError(
                "model.lora is set, but the checkpoint has no adapter: inference would use an untrained one",
                config.model.path,
                "set model.lora to null, or train an adapter first",
            )
        config = _with_adapter(detector, config, origin, config.model.lora)
    recorded = _record(config, processor, origin.commit, detector.head)
    bundle = Bundle(processor, recorded, manifest, detector=detector)
    refusal = processor.family.packing_refusal
    if not for_inference and config.model.attn_implementation == "sdpa" and refusal:
        logger.info("a call of attention for each sample is left out: %s", refusal)
    if config.model.gradient_checkpointing and not for_inference:
        vlm.activation_checkpointing_enable({"use_reentrant": False})
    if for_inference:
        detector.to(config.model.device)
        detector.eval()
    return bundle


def load_interface(config: Config) -> Interface:
    """What :func:`load` would give a model to be asked with; no weights are read."""
    origin = base = find_source(config.model.path, config.model.revision, weights=False)
    manifest = find_manifest(origin.folder)
    trained = None if manifest is None else manifest.config.model.lora
    if trained is not None:
        lora = config.model.lora or trained
        base = find_source(lora.base or trained.base or "", lora.revision, weights=False)
    processor = _processor(config, origin, base, manifest)
    data = config.data.model_copy(update={"labels": resolve_labels(config)})
    resolved = config.model_copy(update={"data": data})
    return Interface(processor, _record(resolved, processor, origin.commit), manifest)


def config_of_checkpoint(folder: Path) -> Config:
    """The config that a checkpoint was trained with, with ``model.path`` pointing at it.

    Types and attention stay those of the training; only the device is the machine's own choice.
    """
    config = read_manifest(folder).config
    own = {"path": str(folder), "revision": None, "device": "auto"}
    model = config.model.model_copy(update=own)
    return config.model_copy(update={"model": model})


def config_of_model(
    path: str, *, revision: str | None = None, given: Config | None = None
) -> tuple[Config, bool]:
    """The config that a model is asked with, and whether this project did not train it.

    Of such a model it is what its family's publication says: prompt, pixel limits, frame; it has no head.

    Args:
        path: as in ``model.path``, of a checkpoint or of any model of a family.
        revision: of a hub id.
        given: how a model without a manifest was trained; what it leaves open is the publication's.
    """
    source = find_source(path, revision, weights=False)
    if (manifest := find_manifest(source.folder)) is not None:
        if given is not None:
            raise ConfigError(
                f"--config is given, but the manifest of {path} says how it was trained",
                "--config",
                "leave it out; single settings are changed with --set",
            )
        config = config_of_checkpoint(source.folder)
    else:
        config = given or Config()
        family = family_of(base_config(str(source.folder)).model_type, path)
        published = {"request": family.request, "max_tokens": MOST_TOKENS}
        own = {name: value for name, value in published.items() if name not in config.data.model_fields_set}
        data = config.data.model_copy(update=own)
        text_only = config.detection.model_copy(update={"enabled": False})
        config = config.model_copy(update={"data": data, "detection": text_only})
    lora = None if manifest is None else config.model.lora
    model = config.model.model_copy(update={"path": path, "revision": source.commit, "lora": lora})
    return config.model_copy(update={"model": model}), manifest is None


def restore(bundle: Bundle, folder: Path) -> None:
    """Give a model the weights of a checkpoint of its own run, verified, every one of them.

    They are copied from the files into the model, tensor by tensor; where it is spread over processes, each
    of them calls this and keeps its part.
    """
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    lora = manifest.config.model.lora
    if lora is None:
        load_base_weights(bundle.detector, folder)
    else:
        _require_fingerprint(lora, bundle.config.model.lora)
        load_adapter(bundle.detector.vlm, folder)
    _verify(bundle.detector, manifest, folder)


def _source(path: str, revision: str | None) -> tuple[Source, Manifest | None]:
    """Where weights come from, and its verified manifest if it has one."""
    source = find_source(path, revision)
    manifest = find_manifest(source.folder)
    if manifest is not None:
        verify_files(source.folder, manifest)
    return source, manifest


def _base_of_adapter(config: Config, manifest: Manifest | None) -> Source | None:
    """Where the base of an adapter checkpoint is; ``None`` if ``model.path`` is no such checkpoint."""
    stored = manifest.config.model.lora if manifest is not None else None
    if stored is None:
        return None
    path, lora = config.model.path, config.model.lora
    if lora is None or any(getattr(lora, name) != getattr(stored, name) for name in ADAPTER_SHAPE):
        wanted = {name: getattr(stored, name) for name in ADAPTER_SHAPE}
        raise CheckpointError(
            f"the checkpoint is an adapter with {wanted}, but the config's model.lora is not the same",
            path,
            "copy model.lora from it, or make a whole model of it: qwendet export",
        )
    base, manifest_of_base = _source(lora.base or stored.base or "", lora.revision)
    if manifest_of_base is not None and manifest_of_base.config.model.lora is not None:
        raise CheckpointError(
            "the base model is itself an adapter", str(base.folder), "qwendet export it first"
        )
    return base


def _with_adapter(
    detector: Qwen25VLWithDetection, config: Config, base: Source, wanted: LoraConfig | None
) -> Config:
    """Put the adapter into the model; record what its base is, and see that it is the wanted one."""
    lora = config.model.lora
    assert lora is not None
    assert wanted is not None
    with explained_load_errors("weights of the base model", str(base.folder)):
        found = fingerprint(base.folder)
    path = lora.base or wanted.base or config.model.path
    recorded = lora.model_copy(update={"base": path, "revision": base.commit, "fingerprint": found})
    _require_fingerprint(wanted, recorded)
    add_adapter(detector.vlm, recorded, config.train.seed)
    return config.model_copy(update={"model": config.model.model_copy(update={"lora": recorded})})


def _require_fingerprint(wanted: LoraConfig, found: LoraConfig | None) -> None:
    """Refuse an adapter on another base than it was trained on."""
    if found is None or wanted.fingerprint not in (None, found.fingerprint):
        raise CheckpointError(
            f"this is not the base model that the adapter was trained on: expected the fingerprint"
            f" {(wanted.fingerprint or '')[:16]}…, got {((found and found.fingerprint) or '')[:16]}…",
            f"model.lora.base {found.base if found else None}",
            f"give the folder or hub id of the right one (in training it was {wanted.base}"
            f"{f' at {wanted.revision}' if wanted.revision else ''}) with --set model.lora.base=…",
        )


def _processor(config: Config, origin: Source, base: Source, manifest: Manifest | None) -> ImageTextProcessor:
    """The processor, which fits the model, whose family is the manifest's, too; no weights are read."""
    source, vlm_config = str(origin.folder), base_config(str(base.folder))
    family = family_of(vlm_config.model_type, source)
    if manifest is not None and manifest.family != family.model_type:
        raise CheckpointError(
            f"the manifest is of {manifest.family}, config.json of {family.model_type}",
            source,
            "take a checkpoint as it was written: boxes of one family mean something else to another",
        )
    family, data = family.in_frame(config.data.frame), config.data
    with explained_load_errors("tokenizer and image processor", source):
        processor = load_processor(source, family, data.min_pixels, data.max_pixels)
    require_fitting(processor, vlm_config, source, has_manifest=manifest is not None)
    return processor


def _verify(detector: Qwen25VLWithDetection, manifest: Manifest, folder: Path) -> None:
    """Load the checkpoint's head, and compare all that its manifest covers."""
    if detector.head is not None and manifest.head is not None:
        load_head_weights(detector, folder)
    elif manifest.head is not None:
        logger.info("head: detection.enabled is false, so the checkpoint's head is left out")
    has_head = manifest.head is not None  # else a head is built anew
    verify_parameters(detector if has_head else Qwen25VLWithDetection(detector.vlm, None), manifest, folder)


def _in_float32(
    config: Config, manifest: Manifest | None, family: Family, *, for_inference: bool
) -> Collection[str]:
    """Groups whose weights are float32 beside others in half precision: as trained, or as they were stored.

    A type that is asked for in place of the checkpoint's own is that of all weights.
    """
    if not for_inference:
        return trained_in_float32(config)
    if manifest is None or manifest.dtype != config.model.dtype or config.model.lora is not None:
        return ()
    in_float32 = (name for name, record in manifest.parameters.items() if record.dtype == "float32")
    return {group_of(name, family) for name in in_float32} - {"head"}


def _record(
    config: Config,
    processor: ImageTextProcessor,
    commit: str | None,
    head: DetectionHead | None = None,
) -> Config:
    """Write into the config what the loaded parts have resolved."""
    size = processor.image_processor.size
    resolved: dict[str, Any] = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    if config.data.system_prompt is None:
        resolved["system_prompt"] = processor.family.system_prompt
    update: dict[str, Any] = {"data": config.data.model_copy(update=resolved)}
    update["model"] = config.model.model_copy(update={"revision": commit})
    if head is not None:
        shape = {name: getattr(head.shape, name) for name in NEW_HEAD}
        update["detection"] = config.detection.model_copy(update=shape)
    return config.model_copy(update=update)
