"""``Qwen25VLWithDetection``: the base model and a detection head behind one forward.

    pixels ─► vision tower ─► merger ─► image tokens ─┐
                  │                                    ├─► language model ─► hidden states ─► lm_head
    token ids ────┼────────────────────────────────────┘                          │
                  └► patches of the student image ─► head ◄─ states at its tokens ┘

It holds the transformers class of its family and never subclasses it: transformers maps the key
names of published weights by class name, and a subclass would load a random model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import Cache, PreTrainedModel

from qwendet.encoding.collate import Batch
from qwendet.errors import EnvironmentLacksError
from qwendet.families.choose import family_of
from qwendet.families.family import Family
from qwendet.model.attention import per_sequence_inputs
from qwendet.model.cross_entropy import linear_cross_entropy
from qwendet.model.head import DetectionHead, HeadOutput
from qwendet.model.losses import TokenLosses
from qwendet.model.precision import float32_or_wider
from qwendet.model.vision_tower import plan


@dataclass(frozen=True)
class DetectorOutput:
    """What one forward gives.

    Attributes:
        tokens: losses of the answers' tokens; ``None`` where they were not asked for.
        head: the head's predictions; ``None`` without a head.
        last: hidden states ``(B, 1, text)`` of each row's last token; ``None`` where no cache was filled.
    """

    tokens: TokenLosses | None
    head: HeadOutput | None
    last: Tensor | None = None


class Qwen25VLWithDetection(nn.Module):
    """A base vision-language model and, if given, a detection head.

    Args:
        vlm: the base model, unchanged.
        head: the detection head, in float32 or float64; ``None`` answers in text only.
        autocast: type that the base model multiplies in; ``None`` is that of its weights.
    """

    accepts_loss_kwargs = False  # the Trainer's own scaling is not used: see qwendet.training.trainer

    def __init__(
        self,
        vlm: PreTrainedModel,
        head: DetectionHead | None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.vlm: Any = vlm
        self.head = head
        self.autocast = autocast

    @property
    def config(self) -> Any:
        """The base model's config."""
        return self.vlm.config

    @property
    def family(self) -> Family:
        """The family of the base model."""
        return family_of(self.config.model_type, "the model in memory")

    @property
    def _no_split_modules(self) -> list[str]:
        """What accelerate shards one by one, where its configuration names none: layers, and the head.

        What is left is gathered from the forward to the backward: all that is read outside of its module's
        forward must be there. The head may be of another type, and a unit of FSDP trains one alone.
        """
        head = [] if self.head is None else [type(self.head).__name__]
        return [*self.vlm._no_split_modules, *head]

    def tie_weights(self) -> None:
        """Make the output layer and the embeddings one again: accelerate asks when it spreads the model."""
        self.vlm.tie_weights()

    def require_ties(self) -> None:
        """Refuse a model whose tied weights have come apart: it would train and save two of them."""
        is_tied = self.vlm.lm_head.weight is self.vlm.get_input_embeddings().weight
        if self.config.tie_word_embeddings and not is_tied:
            raise EnvironmentLacksError(
                "lm_head and embeddings are one weight of this model, but became two when it was prepared",
                "fsdp_cpu_ram_efficient_loading",
                "set it to false in accelerate's configuration, and take the versions in constraints.txt",
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.vlm.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The type that the base model multiplies in."""
        return self.autocast or self.vlm.dtype

    def computing(self) -> torch.autocast:
        """The precision of every use of the model, in training and inference: a context."""
        return torch.autocast(
            self.device.type,
            self.autocast,
            enabled=self.autocast is not None,
            cache_enabled=not isinstance(self, FSDPModule),  # casts of gathered weights would outlive them
        )

    def forward(
        self, batch: Batch, *, with_tokens: bool = True, cache: Cache | None = None
    ) -> DetectorOutput:
        """Run the model on a batch of :class:`~qwendet.encoding.collate.StandardDataCollator`.

        Args:
            batch: the batch; targets in it are not looked at.
            with_tokens: compute the losses of the answers' tokens.
            cache: an empty one; gets keys and values, so that answers can be written behind the prompts.
        """
        with self.computing():
            patches, images = self.encode_images(batch["pixel_values"], torch.tensor(batch["grids"]))
            embeds, label_embeds = self._embed(batch)
            hidden = self.run_language_model(batch, embeds, images, cache)
            tokens = self._token_losses(hidden, batch) if with_tokens else None
        head = None if self.head is None else self._detect(patches, hidden, label_embeds, batch)
        return DetectorOutput(tokens, head, None if cache is None else hidden[:, -1:])

    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> tuple[Tensor, Any]:
        """Run vision tower and merger; called, as the other parts are, in :meth:`computing`.

        ``grids`` ``(images, 3)`` are on the host, so that nobody waits for the device.

        Returns:
            Patches ``(P, vision)`` in the processor's order, and the published output that
            :meth:`run_language_model` takes.
        """
        visual = self.vlm.model.visual
        indices = plan(visual, grids, pixel_values.device)
        images = self.vlm.model.get_image_features(pixel_values, grids, **indices)
        patches: Tensor = images.last_hidden_state
        if (order := indices.get("window_index")) is not None:
            blocks = patches.unflatten(0, (-1, visual.spatial_merge_size**2))
            patches = blocks.index_select(0, order.argsort()).flatten(0, 1)
        return patches, images

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings ``(B, L, text)`` of tokens and ``(C, T, text)`` of the label texts.

        They are looked up in one call: the gradient of each is one of the whole vocabulary.
        """
        ids, label_ids = batch["input_ids"], batch["label_input_ids"]
        found = self.vlm.model.get_input_embeddings()(torch.cat([ids.flatten(), label_ids.flatten()]))
        embeds, label_embeds = found.split([ids.numel(), label_ids.numel()])
        return embeds.view(*ids.shape, -1), label_embeds.view(*label_ids.shape, -1)

    def run_language_model(
        self, batch: Batch, embeds: Tensor, images: Any = None, cache: Cache | None = None
    ) -> Tensor:
        """Hidden states ``(B, L, text)`` of the language model.

        ``embeds`` ``(B, L, text)`` are those of the tokens; ``images``, from :meth:`encode_images`, take the
        place of the image tokens; ``cache`` gets keys and values.
        """
        position_ids = batch["position_ids"]
        # Packed samples are distinguished by positions, and only where there is no mask and no cache.
        mask = None if len(position_ids) == 4 else batch["attention_mask"]
        model = self.vlm.model
        outputs = model(
            inputs_embeds=embeds,
            mm_encoder_outputs=None if images is None else {"image": images},
            use_cache=cache is not None,
            past_key_values=cache,
            **per_sequence_inputs(
                model.language_model, position_ids, mask, batch["num_tokens"], embeds.shape[:2]
            ),
        )
        hidden: Tensor = outputs.last_hidden_state
        return hidden

    def _token_losses(self, hidden: Tensor, batch: Batch) -> TokenLosses:
        """Token losses of the answers; only their positions go through ``lm_head``."""
        teacher_rows, student_rows = batch["teacher_rows"], batch["student_rows"]
        student_sum, student_nll = self._cross_entropy(hidden, student_rows, batch)
        if len(teacher_rows):
            teacher_sum, teacher_nll = self._cross_entropy(hidden, teacher_rows, batch)
        else:  # a differentiable 0 without a second, empty gradient of the size of lm_head
            teacher_sum, teacher_nll = student_sum * 0, student_nll[:0]
        in_order = torch.cat([teacher_rows, student_rows]).argsort()
        nll = torch.cat([teacher_nll, student_nll])[in_order]
        return TokenLosses(nll, in_order >= len(teacher_rows), teacher_sum, student_sum)

    def _cross_entropy(self, hidden: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum of the nll of the tokens after ``rows``, and the summands ``(R,)``."""
        states, labels = hidden.flatten(0, 1)[rows], batch["labels"].flatten()[rows + 1]
        lm_head = self.vlm.lm_head
        if type(lm_head) is nn.Linear:
            return linear_cross_entropy(states, lm_head.weight, labels)
        logits: Tensor = lm_head(states)  # an adapter's
        nll = F.cross_entropy(logits.to(float32_or_wider(logits.dtype)), labels, reduction="none")
        return nll.sum(), nll.detach()

    def _detect(self, patches: Tensor, hidden: Tensor, label_embeds: Tensor, batch: Batch) -> HeadOutput:
        assert self.head is not None
        dtype = self.head.dtype
        with torch.autocast(self.device.type, enabled=False):  # boxes and scores take more digits
            predictions: HeadOutput = self.head(
                patches[batch["patch_index"]].to(dtype),
                hidden.flatten(0, 1)[batch["context_index"]].to(dtype),
                batch["patch_mask"],
                label_embeds.to(dtype),
                batch["label_attention_mask"],
                batch["asked"],
            )
        return predictions
