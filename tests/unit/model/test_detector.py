"""The detector: the library's own loss, patches in true order, nothing in the head but the student's."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qwendet.config.schema import LossConfig
from qwendet.data.samples import Sample, Turn
from qwendet.encoding.collate import IGNORED, Batch
from qwendet.encoding.encode import EncodedSample
from qwendet.loader import Bundle
from qwendet.model import detector as detector_module
from qwendet.model.cross_entropy import linear_cross_entropy
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import HeadOutput, LabelEncoder
from qwendet.model.losses import LossManager, step_counts

Mosaic = Callable[[int, int], tuple[Sample, np.ndarray]]
Found = tuple[Tensor, Tensor]

EMPTY_TURN = Turn("", ())
LABEL_KEYS = ("label_input_ids", "label_attention_mask")
MODEL_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw", "labels")


def detections(output: HeadOutput | None) -> list[Found]:
    """Logits and boxes of each sample, without what pads it to the batch."""
    assert output is not None
    return [
        (logits[valid], boxes[valid])
        for logits, boxes, valid in zip(output.logits, output.boxes_cxcywh, output.valid, strict=True)
    ]


@torch.no_grad()
def detect(detector: Qwen25VLWithDetection, batch: Batch) -> list[Found]:
    return detections(detector(batch, with_tokens=False).head)


def assert_same(found: Found, expected: Found, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@contextmanager
def recorded_inputs(module: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """What a module is called with inside the block."""
    calls: list[tuple[Any, ...]] = []
    hook = module.register_forward_pre_hook(lambda _, args: calls.append(args))
    try:
        yield calls
    finally:
        hook.remove()


# The language model's loss


@pytest.mark.usefixtures("float64_is_kept")
def test_lm_loss_and_gradients__are_those_of_the_published_class(
    detector64: Qwen25VLWithDetection, batch: Batch
) -> None:
    parameters = dict(detector64.vlm.named_parameters())
    weights = LossConfig(lm_loss_weight=1.0, teacher_loss_weight=0.0, student_loss_weight=0.0)
    output = Qwen25VLWithDetection(detector64.vlm, None)(batch)
    losses = LossManager(weights, one_to_many=1)(output.tokens, output.head, None, step_counts([batch]))
    own_loss = detector64.vlm(**{key: batch[key] for key in MODEL_KEYS}).loss
    assert losses.total.dtype == torch.float64
    assert losses.total.item() == pytest.approx(own_loss.item(), rel=0, abs=1e-9)
    found = torch.autograd.grad(losses.total, parameters.values())
    expected = torch.autograd.grad(own_loss, parameters.values())
    for name, one, other in zip(parameters, found, expected, strict=True):
        assert other.abs().max() > 1e-9, name
        torch.testing.assert_close(
            one, other, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture
def lm_head_rows(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of what goes through ``lm_head`` for the losses."""
    shapes: list[torch.Size] = []

    def note(rows: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(rows.shape)
        return linear_cross_entropy(rows, weight, labels)

    monkeypatch.setattr(detector_module, "linear_cross_entropy", note)
    return shapes


def test_lm_head__sees_only_supervised_positions(
    detector64: Qwen25VLWithDetection, batch: Batch, lm_head_rows: list[torch.Size]
) -> None:
    with recorded_inputs(detector64.vlm.lm_head) as calls, torch.no_grad():
        output = detector64(batch)
    supervised = (batch["labels"] != IGNORED).sum().item()
    student = len(batch["student_rows"])
    assert lm_head_rows == [(student, 160), (supervised - student, 160)]
    assert calls == []
    assert 0 < student < supervised < batch["labels"].numel() / 2
    assert output.tokens.nll.shape == (supervised,)
    assert output.tokens.is_student.sum() == student


def test_token_sums__are_those_of_their_tokens(detector64: Qwen25VLWithDetection, batch: Batch) -> None:
    with torch.no_grad():
        tokens = detector64(batch).tokens
    is_student = torch.zeros(batch["labels"].numel(), dtype=torch.bool)
    is_student[batch["student_rows"] + 1] = True
    of_student = is_student[batch["labels"].flatten() != IGNORED]
    assert torch.equal(tokens.is_student, of_student)
    assert tokens.student_sum.item() == pytest.approx(tokens.nll[of_student].sum().item(), rel=1e-12)
    assert tokens.teacher_sum.item() == pytest.approx(tokens.nll[~of_student].sum().item(), rel=1e-12)


def test_lm_head__with_an_adapter_is_called_as_a_module(
    detector64: Qwen25VLWithDetection, batch: Batch
) -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base

        def forward(self, rows: Tensor) -> Tensor:
            return self.base(rows) * 2

    vlm = copy.copy(detector64.vlm)
    vlm._modules = detector64.vlm._modules | {"lm_head": Adapted(detector64.vlm.lm_head)}
    with torch.no_grad():
        adapted = Qwen25VLWithDetection(vlm, None)(batch).tokens
        plain = Qwen25VLWithDetection(detector64.vlm, None)(batch).tokens
    assert (adapted.nll - plain.nll).abs().max() > 1e-3
    assert adapted.student_sum.item() == pytest.approx(adapted.nll[adapted.is_student].sum().item())


def test_lm_head__is_left_alone_where_no_losses_are_asked_for(
    detector64: Qwen25VLWithDetection, batch: Batch, lm_head_rows: list[torch.Size]
) -> None:
    with torch.no_grad():
        assert detector64(batch, with_tokens=False).tokens is None
    assert lm_head_rows == []


def test_forward__without_a_head_gives_token_losses_alone(
    detector64: Qwen25VLWithDetection, batch: Batch
) -> None:
    bare = Qwen25VLWithDetection(detector64.vlm, None)
    with torch.no_grad():
        output = bare(batch)
    assert output.head is None
    assert torch.equal(output.tokens.nll, detector64(batch).tokens.nll)
    assert not any(name.startswith("head") for name in bare.state_dict())


# Alone and in company


@pytest.mark.usefixtures("float64_is_kept")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_batch__gives_each_sample_what_it_gets_alone(
    bundle: Bundle,
    detector64: Qwen25VLWithDetection,
    encoded: list[EncodedSample],
    batch: Batch,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    detector = detector64 if dtype == torch.float64 else copy.deepcopy(detector64).float()
    with torch.no_grad():
        together = detector(batch)
    assert (batch["attention_mask"] == 0).sum() > 50
    nll = together.tokens.nll.split((batch["labels"] != IGNORED).sum(1).tolist())
    for row, sample in enumerate(encoded):
        with torch.no_grad():
            alone = detector(bundle.collator()([sample]))
        torch.testing.assert_close(nll[row], alone.tokens.nll, rtol=0, atol=tolerance)
        (expected,) = detections(alone.head)
        assert_same(detections(together.head)[row], expected, tolerance)


def test_batch__a_sample_has_its_own_patches_and_queries_only(
    detector64: Qwen25VLWithDetection, batch: Batch
) -> None:
    with torch.no_grad():
        output = detector64(batch).head
    patches = batch["patch_mask"].sum((1, 2))
    most = batch["patch_mask"][0].numel()
    assert output.stage_sizes == (most, 70, 70)
    assert patches.min() < 70 < patches.max()
    assert output.valid.sum(1).tolist() == [own + 2 * min(70, own) for own in patches.tolist()]
    _, _, valid = output.final()
    assert valid.sum(1).tolist() == patches.clamp(max=70).tolist()


@pytest.mark.usefixtures("float64_is_kept")
def test_head__does_not_see_the_students_answer(
    bundle: Bundle, detector64: Qwen25VLWithDetection, lessons: list[Sample], batch: Batch
) -> None:
    encoder = bundle.encoder()
    prompts = bundle.collator()([encoder.encode(lesson, with_answer=False) for lesson in lessons])
    assert prompts["input_ids"].shape[1] < batch["input_ids"].shape[1]
    for found, expected in zip(detect(detector64, prompts), detect(detector64, batch), strict=True):
        assert_same(found, expected, 1e-10)


def test_head__does_not_see_what_follows_the_image(
    bundle: Bundle, detector64: Qwen25VLWithDetection, encoded: list[EncodedSample]
) -> None:
    """Other answer tokens and other boxes: the head's outputs are bit for bit the same."""
    sample = encoded[0]
    (start, end) = sample.student_assistant_spans[0]
    ids = sample.input_ids.clone()
    ids[start:end] = ids[start:end].flip(0)
    other = dataclasses.replace(
        sample, input_ids=ids, boxes_cxcywh=sample.boxes_cxcywh.flip(0), label_ids=sample.label_ids.flip(0)
    )
    (found,) = detect(detector64, bundle.collator()([other]))
    (expected,) = detect(detector64, bundle.collator()([sample]))
    assert_same(found, expected, 0.0)


# Leaks from other samples and from teacher images


def repainted(sample: EncodedSample, patches: slice) -> EncodedSample:
    """The sample with other pixels in some of its patches."""
    pixels = sample.pixel_values.clone()
    pixels[patches] = pixels[patches].flip(0) + 0.5
    return dataclasses.replace(sample, pixel_values=pixels)


def student_patches(sample: EncodedSample) -> int:
    return int(sample.image_grid_thw[-1].prod())


Spoil = Callable[[Batch], Batch]


def assert_alone_with_its_image(
    bundle: Bundle,
    detector: Qwen25VLWithDetection,
    samples: Sequence[EncodedSample],
    spoil: Spoil = lambda batch: batch,
) -> None:
    """Repainting every image of the second sample must change nothing in the first, and the second."""
    first, second = samples
    before = detect(detector, spoil(bundle.collator()([first, second])))
    other = repainted(second, slice(None))
    after = detect(detector, spoil(bundle.collator()([first, other])))
    assert_same(after[0], before[0], 0.0)
    assert (after[1][0] - before[1][0]).abs().max() > 1e-6


def test_head__does_not_see_batch_mates(
    bundle: Bundle, detector64: Qwen25VLWithDetection, encoded: list[EncodedSample]
) -> None:
    assert_alone_with_its_image(bundle, detector64, [encoded[0], encoded[3]])
    assert_alone_with_its_image(bundle, detector64, [encoded[3], encoded[0]])


@pytest.mark.parametrize("pointer", ["patch_index", "context_index"])
def test_head__pointing_at_a_batch_mate_is_noticed(
    bundle: Bundle, detector64: Qwen25VLWithDetection, encoded: list[EncodedSample], pointer: str
) -> None:
    """The planted leak: the first sample's pointers end in the second sample."""

    def leak(batch: Batch) -> Batch:
        spoilt = batch[pointer].clone()
        spoilt[0, 0, 0] = spoilt[1, 0, 0]
        return batch | {pointer: spoilt}

    with pytest.raises(AssertionError, match="Tensor-likes are not equal"):
        assert_alone_with_its_image(bundle, detector64, [encoded[0], encoded[3]], leak)


def test_teacher_image__reaches_the_head_through_the_language_model_alone(
    bundle: Bundle, detector64: Qwen25VLWithDetection, encoded: list[EncodedSample]
) -> None:
    sample = encoded[0]
    of_teachers = slice(0, len(sample.pixel_values) - student_patches(sample))
    assert of_teachers.stop > 0
    with recorded_inputs(detector64.head) as calls:
        (before,) = detect(detector64, bundle.collator()([sample]))
        (after,) = detect(detector64, bundle.collator()([repainted(sample, of_teachers)]))
    (patches, context, *_), (other_patches, other_context, *_) = calls
    assert torch.equal(patches, other_patches)
    assert (context - other_context).abs().max() > 1e-6
    assert (before[0] - after[0]).abs().max() > 1e-9


# Order


@pytest.fixture(scope="module")
def blind(detector64: Qwen25VLWithDetection) -> Qwen25VLWithDetection:
    """A vision tower without attention: a patch's feature is its embedding, made of its pixels alone."""
    detector = copy.deepcopy(detector64)
    detector.vlm.model.visual.blocks = nn.ModuleList()
    return detector


def test_patches__reach_the_head_where_they_are_in_the_image(
    bundle: Bundle,
    blind: Qwen25VLWithDetection,
    mosaic: Mosaic,
    normalise: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Images larger than one attention window (8 × 8 patches), which the tower shuffles window by window."""
    sizes = [(12, 16), (16, 12), (10, 18), (6, 6)]
    made = [mosaic(columns, rows) for columns, rows in sizes]
    samples = [Sample(made[0][0].student, (made[2][0].student,)), *(sample for sample, _ in made[1:])]
    batch = bundle.collator()([bundle.encoder().encode(sample, with_answer=True) for sample in samples])
    with recorded_inputs(blind.head) as calls:
        detect(blind, batch)
    ((patches, _, mask, *_),) = calls
    for row, ((columns, rows), (_, colours)) in enumerate(zip(sizes, made, strict=True)):
        pixels = torch.from_numpy(normalise(colours)).reshape(-1, 3, 1).expand(-1, -1, 2 * 14 * 14)
        with torch.no_grad():
            expected = blind.vlm.model.visual.patch_embed(pixels.flatten(1))
        found = patches[row, :rows, :columns].flatten(0, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert mask[row].sum() == rows * columns
    distances = torch.cdist(expected, expected) + torch.eye(len(expected))
    assert distances.min() > 1e-3


def test_patches__a_painted_spot_is_seen_where_it_is(
    bundle: Bundle, blind: Qwen25VLWithDetection, tmp_path: Path
) -> None:
    """From pixels to the head's input: x is x and y is y."""
    pixels = np.zeros((168, 224, 3), dtype=np.uint8)
    pixels[3 * 14 : 4 * 14, 13 * 14 : 14 * 14] = 255
    Image.fromarray(pixels).save(tmp_path / "spot.png")
    sample = Sample(dataclasses.replace(EMPTY_TURN, image="spot.png", root=tmp_path))
    batch = bundle.collator()([bundle.encoder().encode(sample, with_answer=True)])
    with recorded_inputs(blind.head) as calls:
        detect(blind, batch)
    ((patches, *_),) = calls
    differs = (patches[0] - patches[0, 0, 0]).abs().amax(-1) > 1e-3
    assert differs.nonzero().tolist() == [[3, 13]]


@pytest.mark.usefixtures("float64_is_kept")
def test_image_tokens__keep_the_mergers_order(
    bundle: Bundle, detector64: Qwen25VLWithDetection, encoded: list[EncodedSample]
) -> None:
    """Image embeddings enter the sequence as the base model itself would put them there."""
    sample = encoded[0]
    with torch.no_grad():
        _, images = detector64.encode_images(sample.pixel_values, sample.image_grid_thw)
        own = detector64.vlm.get_image_features(sample.pixel_values.double(), sample.image_grid_thw)
    torch.testing.assert_close(
        torch.cat(images.pooler_output), torch.cat(list(own.pooler_output)), rtol=0, atol=1e-10
    )


# Labels


def label_embeddings(bundle: Bundle, detector: Qwen25VLWithDetection, texts: Sequence[str]) -> Tensor:
    tokens = [bundle.processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    ids = torch.tensor(tokens)
    embeds = detector.vlm.model.get_input_embeddings()(ids)
    with torch.no_grad():
        result: Tensor = detector.head.labels(embeds, torch.ones_like(ids, dtype=torch.bool))
    return result


def test_labels__the_order_of_words_matters(bundle: Bundle, detector64: Qwen25VLWithDetection) -> None:
    one, other = label_embeddings(bundle, detector64, ["red blue", "blue red"])
    assert (one - other).abs().max() > 1e-2


def test_labels__the_order_of_the_same_tokens_matters(detector64: Qwen25VLWithDetection) -> None:
    tokens = torch.randn(1, 2, 160, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 2, dtype=torch.bool)
    with torch.no_grad():
        one, other = (detector64.head.labels(embeds, mask) for embeds in (tokens, tokens.flip(1)))
    assert (one - other).abs().max() > 1e-2


def test_labels__padding_changes_nothing(bundle: Bundle, detector64: Qwen25VLWithDetection) -> None:
    embeds = torch.randn(1, 3, 160, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False]])
    with torch.no_grad():
        padded = detector64.head.labels(embeds, mask)
        bare = detector64.head.labels(embeds[:, :2], mask[:, :2])
    torch.testing.assert_close(padded, bare, rtol=0, atol=1e-12)


def test_labels__what_all_tokens_share_changes_nothing() -> None:
    """In the tiny model it is 95 % of an embedding's length: labels had cosine 0.999."""
    torch.manual_seed(0)
    encoder = LabelEncoder(16, 32).double()
    vocabulary, shared = torch.randn(50, 16, dtype=torch.float64), torch.full((16,), 9.0, dtype=torch.float64)
    mask = torch.ones(4, 2, dtype=torch.bool)
    found = []
    for rows in (vocabulary, vocabulary + shared):
        encoder.centre_on(rows)
        with torch.no_grad():
            found.append(encoder(rows[:8].unflatten(0, (4, 2)), mask))
    rounding = 50 * torch.finfo(torch.float32).eps * 12  # the centre is a float32 mean of 50 numbers up to 12
    assert encoder.centre.tolist() == pytest.approx((vocabulary.mean(0) + 9).tolist(), abs=rounding)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=10 * rounding)  # a norm and a product follow


def test_labels__permuting_the_set_permutes_the_logits(
    detector64: Qwen25VLWithDetection, batch: Batch
) -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    permuted = batch | {key: batch[key][order] for key in LABEL_KEYS}
    for (logits, boxes), (expected, expected_boxes) in zip(
        detect(detector64, permuted), detect(detector64, batch), strict=True
    ):
        assert_same((logits, boxes), (expected[:, order], expected_boxes), 1e-10)


def test_labels__a_subset_keeps_its_dense_logits(detector64: Qwen25VLWithDetection, batch: Batch) -> None:
    """An open set: what a patch scores for a label does not depend on which other labels are asked for."""
    few = batch | {key: batch[key][[2, 7]] for key in LABEL_KEYS} | {"asked": batch["asked"][:, [2, 7]]}
    with torch.no_grad():
        found, expected = (detector64(b, with_tokens=False).head for b in (few, batch))
    dense = expected.stage_sizes[0]
    torch.testing.assert_close(
        found.logits[:, :dense], expected.logits[:, :dense, [2, 7]], rtol=0, atol=1e-10
    )


# Precision


def test_boxes__of_a_bfloat16_model_are_float32(bundle: Bundle, batch: Batch) -> None:
    """In bfloat16 a box of a 640-pixel image could only stand at every second or third pixel."""
    detector = copy.deepcopy(bundle.detector).to(torch.bfloat16)
    with torch.no_grad():
        output = detector(batch)
    assert output.head.boxes_cxcywh.dtype == torch.float32
    assert output.tokens.nll.dtype == torch.float32
    own = batch["patch_mask"][0]
    rows, columns = own.any(1).sum(), own.any(0).sum()
    centres = output.head.boxes_cxcywh[0, : own.numel()][own.flatten()][:, :2].reshape(rows, columns, 2)
    expected = (torch.arange(columns) + 0.5) / columns
    torch.testing.assert_close(centres[0, :, 0], expected, rtol=0, atol=1e-6)


def test_forward__looks_everything_up_in_one_call(detector64: Qwen25VLWithDetection, batch: Batch) -> None:
    """Each call of the embeddings has a gradient of the whole vocabulary."""
    calls: list[int] = []
    embeddings = detector64.vlm.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda _, args, output: calls.append(args[0].numel()))
    with torch.no_grad():
        detector64(batch)
    handle.remove()
    places = [1, 1]  # by which the published forward finds image and video tokens; without a gradient
    assert calls == [batch["input_ids"].numel() + batch["label_input_ids"].numel(), *places]
