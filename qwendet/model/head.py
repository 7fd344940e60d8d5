"""The detection head: DETR-style set prediction over label texts, on the student image alone.

    patches (vision tower, 2-D order) ─┐
    hidden states at the image's tokens┴► memory ─► every patch proposes a box    (dense stage)
                                                     │ best proposals become queries
                                                     ▼
                                          decoder layers refine box and class     (one stage a layer)
    label texts ─► label embeddings ─► class logits of every stage

Two-stage queries follow Deformable DETR (Zhu et al. 2021, §4.2); cross-attention over one plain
feature map is biased by the position of each patch relative to the query's box, and boxes are
regressed relative to the box before, as in Plain DETR (Lin et al. 2023, §4.1 and §4.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwendet.boxes import cxcywh_to_xyxy

NOT_ASKED = -1e4
"""Logit of a label that a sample is not asked: probability, loss and gradient are exactly 0 in every type;
those of minus infinity are not."""
PRIOR = 0.01  # probability of any class before training, so that the many negatives don't swamp it
FIRST_BOX_PATCHES = 4.0  # side of a proposal's box before regression
MAX_LOG_SCALE = 4.0


@dataclass(frozen=True)
class HeadShape:
    """Everything that fixes the head's parameters: widths, decoder layers, attention heads.

    ``vision_size`` is the width of a patch before the merger, ``text_size`` that of the language model.
    """

    vision_size: int
    text_size: int
    hidden_size: int
    num_layers: int
    num_heads: int


@dataclass(frozen=True)
class HeadOutput:
    """Predictions of every stage, the dense one first and the last decoder layer last.

    Attributes:
        logits: ``(B, K, C)``, K the sum of ``stage_sizes``; ``NOT_ASKED`` at labels a sample is not asked.
        boxes_cxcywh: ``(B, K, 4)`` in the unit square of the student image, not clipped.
        valid: ``(B, K)`` bool, False where a sample has fewer patches than the batch's largest.
        stage_sizes: predictions of each stage.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    valid: Tensor
    stage_sizes: tuple[int, ...]

    def final(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``(B, Q, C)``, boxes ``(B, Q, 4)`` and validity ``(B, Q)`` of the last layer."""
        start = sum(self.stage_sizes[:-1])
        return self.logits[:, start:], self.boxes_cxcywh[:, start:], self.valid[:, start:]


class DetectionHead(nn.Module):
    """See the module's text; ``num_queries`` is the most boxes found in an image."""

    def __init__(self, shape: HeadShape, num_queries: int) -> None:
        super().__init__()
        size = shape.hidden_size
        self.shape = shape
        self.num_queries = num_queries
        self.memory = Memory(shape)
        self.labels = LabelEncoder(shape.text_size, size)
        self.classify = Classifier(size)
        self.dense_box = mlp(size, size, 4)
        self.query = nn.Linear(size, size)
        self.query_position = mlp(4 * POSITION_FEATURES, size, size)
        self.layers = nn.ModuleList(DecoderLayer(size, shape.num_heads) for _ in range(shape.num_layers))
        self.box = nn.ModuleList(mlp(size, size, 4) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(size)
        for regressor in (self.dense_box, *self.box):
            nn.init.zeros_(regressor[-1].weight)
            nn.init.zeros_(regressor[-1].bias)

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights, in which it computes."""
        return self.classify.bias.dtype

    def forward(
        self,
        patches: Tensor,
        context: Tensor,
        mask: Tensor,
        label_embeds: Tensor,
        label_mask: Tensor,
        asked: Tensor,
    ) -> HeadOutput:
        """Detect.

        Args:
            patches: ``(B, H, W, vision_size)`` vision patches of the student image in 2-D order.
            context: ``(B, H, W, text_size)`` hidden states of the token each patch belongs to.
            mask: ``(B, H, W)`` bool, True at the sample's own patches, whole rows and columns of them.
            label_embeds: ``(C, T, text_size)`` token embeddings of the label texts.
            label_mask: ``(C, T)`` bool.
            asked: ``(B, C)`` bool, True at the labels that a sample is asked; others change nothing.

        Returns:
            Predictions of all stages.
        """
        labels = self.labels(label_embeds, label_mask)
        memory, valid = self.memory(patches, context, mask).flatten(1, 2), mask.flatten(1)
        cells = cell_boxes(mask)  # boxes stay float32: bfloat16 would place them to 1/256 of the image
        logits = [self.classify(memory, labels, asked)]
        boxes = [refine(cells, self.dense_box(memory))]
        chosen, chosen_valid = self._choose(logits[0], valid)
        queries = self.query(take(memory, chosen))
        reference = take(boxes[0], chosen).detach()
        for layer, regress in zip(self.layers, self.box, strict=True):
            position = self.query_position(box_features(reference).to(memory.dtype))
            assert isinstance(layer, DecoderLayer)
            offsets = layer.patch_offsets(reference, mask)
            queries = layer(queries, position, memory, offsets, chosen_valid)
            answer = self.norm(queries)
            boxes.append(refine(reference, regress(answer)))
            logits.append(self.classify(answer, labels, asked))
            reference = boxes[-1].detach()
        stages = [valid] + [chosen_valid] * len(self.layers)
        return HeadOutput(
            torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(stages, 1), tuple(s.shape[1] for s in stages)
        )

    def constants(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the parameters, by its name in the head."""
        return {"labels.centre": self.labels.centre}

    def _choose(self, logits: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Indices ``(B, Q)`` of the best proposals, and which of them are real."""
        scores = logits.detach().amax(-1).masked_fill(~valid, -torch.inf)
        chosen = scores.topk(min(self.num_queries, scores.shape[1]), dim=1).indices
        return chosen, valid.gather(1, chosen)


class Memory(nn.Module):
    """Joins what the vision tower saw with what the language model made of it, and mixes neighbours."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        size = shape.hidden_size
        self.patches = nn.Sequential(nn.LayerNorm(shape.vision_size), nn.Linear(shape.vision_size, size))
        self.context = nn.Sequential(nn.LayerNorm(shape.text_size), nn.Linear(shape.text_size, size))
        self.mix = nn.ModuleList(NeighbourMixer(size) for _ in range(2))
        self.norm = nn.LayerNorm(size)

    def forward(self, patches: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Return ``(B, H, W, hidden)``; cells outside ``mask`` hold nothing of use."""
        memory: Tensor = self.patches(patches) + self.context(context)
        for mix in self.mix:
            memory = mix(memory, mask)
        result: Tensor = self.norm(memory)
        return result


class NeighbourMixer(nn.Module):
    """A depthwise 5 × 5 convolution and an MLP, residual (the block of ConvNeXt, Liu et al. 2022)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(size, size, 5, padding=2, groups=size)
        self.norm = nn.LayerNorm(size)
        self.mlp = mlp(size, 2 * size, size)

    def forward(self, memory: Tensor, mask: Tensor) -> Tensor:
        """Mix ``(B, H, W, size)``; cells outside ``mask`` count as the zeros beyond the border."""
        own = (memory * mask[..., None]).permute(0, 3, 1, 2)
        mixed: Tensor = self.mlp(self.norm(self.depthwise(own).permute(0, 2, 3, 1)))
        return memory + mixed


class LabelEncoder(nn.Module):
    """Embeds label texts; the order of a text's tokens matters.

    All token embeddings have much in common, which tells no label from another and yet is most of each. The
    mean over the vocabulary is taken away; :meth:`centre_on` notes it once, when a head is made.
    """

    centre: Tensor

    def __init__(self, text_size: int, size: int) -> None:
        super().__init__()
        # Not in `state_dict`: accelerate's FSDP takes everything there for a tensor spread over processes.
        self.register_buffer("centre", torch.zeros(text_size), persistent=False)
        self.norm = nn.LayerNorm(text_size)
        self.token = mlp(text_size, size, size)
        self.out = nn.LayerNorm(size)

    @torch.no_grad()
    def centre_on(self, vocabulary: Tensor) -> None:
        """Note the mean of the language model's token embeddings ``(V, text_size)``."""
        self.centre.copy_(vocabulary.mean(0, dtype=torch.float32))

    def forward(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Embed ``(C, T, text_size)`` token embeddings as ``(C, size)``."""
        normed = self.norm(embeds - self.centre)
        order = sine(torch.arange(embeds.shape[1], device=embeds.device), embeds.shape[2]).to(normed.dtype)
        tokens = self.token(normed + order) * mask[..., None]
        result: Tensor = self.out(tokens.sum(1) / mask.sum(1, keepdim=True))
        return result


class Classifier(nn.Module):
    """Scaled dot product of features and label embeddings, starting at probability ``PRIOR``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.project = nn.Linear(size, size)
        self.bias = nn.Parameter(torch.tensor([-math.log((1 - PRIOR) / PRIOR)]))

    def forward(self, features: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
        """Logits ``(B, N, C)`` of features ``(B, N, size)`` for labels ``(C, size)``, asked ``(B, C)``."""
        logits: Tensor = self.project(features) @ labels.T / math.sqrt(labels.shape[1]) + self.bias
        return logits.masked_fill(~asked[:, None], NOT_ASKED)


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the patches, MLP; normalised before each."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.self_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(size) for _ in range(3))
        self.self_query_key = nn.Linear(size, 2 * size)
        self.self_value = nn.Linear(size, size)
        self.self_out = nn.Linear(size, size)
        self.cross_query = nn.Linear(size, size)
        self.cross_key_value = nn.Linear(size, 2 * size)
        self.cross_out = nn.Linear(size, size)
        self.offset_x = mlp(2, 64, num_heads)
        self.offset_y = mlp(2, 64, num_heads)
        self.mlp = mlp(size, 2 * size, size)

    def forward(
        self, queries: Tensor, position: Tensor, memory: Tensor, offsets: Tensor, own: Tensor
    ) -> Tensor:
        """Refine queries.

        Args:
            queries: ``(B, Q, size)``.
            position: ``(B, Q, size)`` embedding of each query's box.
            memory: ``(B, P, size)``.
            offsets: ``(B, heads, Q, P)`` from :meth:`patch_offsets`.
            own: ``(B, Q)`` bool, real queries.
        """
        normed = self.self_norm(queries)
        query, key = self.self_query_key(normed + position).chunk(2, dim=-1)
        seen = self._attend(query, key, self.self_value(normed), own[:, None, None])
        queries = queries + self.self_out(seen)
        query = self.cross_query(self.cross_norm(queries) + position)
        key, value = self.cross_key_value(memory).chunk(2, dim=-1)
        queries = queries + self.cross_out(self._attend(query, key, value, offsets))
        result: Tensor = queries + self.mlp(self.mlp_norm(queries))
        return result

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value)
        )
        if mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return seen.transpose(1, 2).flatten(2)

    def patch_offsets(self, boxes_cxcywh: Tensor, mask: Tensor) -> Tensor:
        """Attention bias of each patch by its place relative to each query's box edges.

        Axis by axis, as Plain DETR's BoxRPB (eq. 3); distances are in patches, on a signed log scale,
        so that the same box looks the same in an image of any size.

        Args:
            boxes_cxcywh: ``(B, Q, 4)`` in the unit square.
            mask: ``(B, H, W)`` bool, whole rows and columns.

        Returns:
            ``(B, heads, Q, H * W)``, minus infinity outside ``mask``.
        """
        edges = cxcywh_to_xyxy(boxes_cxcywh) * grid_scale(mask)[:, None]
        rows, columns = mask.shape[1:]
        dtype = self.self_out.weight.dtype
        along_x = self.offset_x(edge_distances(edges[..., 0::2], columns).to(dtype)).permute(0, 3, 1, 2)
        along_y = self.offset_y(edge_distances(edges[..., 1::2], rows).to(dtype)).permute(0, 3, 1, 2)
        beyond_x, beyond_y = ~mask.any(1)[:, None, None], ~mask.any(2)[:, None, None]
        along_x = along_x.masked_fill(beyond_x, -torch.inf)
        along_y = along_y.masked_fill(beyond_y, -torch.inf)
        bias: Tensor = along_y[..., None] + along_x[..., None, :]  # (B, heads, Q, H, W)
        return bias.flatten(3)


def mlp(size_in: int, hidden: int, size_out: int) -> nn.Sequential:
    """Two linear layers with a GELU between."""
    return nn.Sequential(nn.Linear(size_in, hidden), nn.GELU(), nn.Linear(hidden, size_out))


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` ``(B, Q)`` of ``(B, N, D)``: ``(B, Q, D)``."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def grid_scale(mask: Tensor) -> Tensor:
    """Columns and rows of each sample's own grid as ``(B, 4)``: x, y, x, y."""
    rows, columns = mask.any(2).sum(1), mask.any(1).sum(1)
    return torch.stack([columns, rows, columns, rows], dim=-1)


def cell_boxes(mask: Tensor) -> Tensor:
    """The box each patch proposes before regression: ``(B, H * W, 4)`` cxcywh in the unit square."""
    rows, columns = mask.shape[1:]
    y, x = torch.meshgrid(
        torch.arange(rows, device=mask.device), torch.arange(columns, device=mask.device), indexing="ij"
    )
    side = torch.full_like(x, FIRST_BOX_PATCHES, dtype=torch.float32)
    boxes = torch.stack([x + 0.5, y + 0.5, side, side], dim=-1).flatten(0, 1)
    unit: Tensor = boxes / grid_scale(mask)[:, None]
    return unit


def refine(boxes_cxcywh: Tensor, deltas: Tensor) -> Tensor:
    """Move and scale boxes, relative to their own size (R-CNN, Girshick et al. 2014, appendix C).

    Args:
        boxes_cxcywh: ``(..., 4)``.
        deltas: ``(..., 4)``, shift in units of the box's size and logarithm of the scale.
    """
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    scale = deltas[..., 2:].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
    return torch.cat([centre + deltas[..., :2] * size, size * scale], dim=-1)


def edge_distances(edges: Tensor, cells: int) -> Tensor:
    """Signed log distance of each cell centre from two edges: ``(B, Q, cells, 2)``.

    Args:
        edges: ``(B, Q, 2)`` low and high edge, in cells.
        cells: number of cells along the axis.
    """
    centres = torch.arange(cells, device=edges.device, dtype=edges.dtype) + 0.5
    distance = centres[None, None, :, None] - edges[:, :, None]
    logarithmic: Tensor = distance.sign() * torch.log2(1 + distance.abs())
    return logarithmic


POSITION_FEATURES = 32


def sine(position: Tensor, features: int) -> Tensor:
    """Sines and cosines of a position (Vaswani et al. 2017, §3.5): ``(..., features)``."""
    frequency = torch.exp(
        torch.arange(0, features, 2, device=position.device) * (-math.log(10_000.0) / features)
    )
    angle = position[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def box_features(boxes_cxcywh: Tensor) -> Tensor:
    """Sine embedding of a box's four numbers: ``(B, Q, 4 * POSITION_FEATURES)``."""
    return sine(boxes_cxcywh * 2 * math.pi * 16, POSITION_FEATURES).flatten(-2).to(boxes_cxcywh.dtype)
