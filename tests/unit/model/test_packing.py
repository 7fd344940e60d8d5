"""Packing: the same losses, gradients and detections as a row each, and a refusal where samples would mix."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from qwendet.checks.consistency.noise import attending
from qwendet.config.schema import LossConfig
from qwendet.encoding.collate import Batch, rope_positions
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import EnvironmentLacksError
from qwendet.loader import Bundle
from qwendet.model import detector as detector_module
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.losses import Losses, LossManager, step_counts
from qwendet.model.matching import Targets
from qwendet.model.packing import require_isolation
from tests.unit.model.test_attention import under_masks


@pytest.fixture(scope="module")
def packed(bundle: Bundle, encoded: list[EncodedSample]) -> Batch:
    return bundle.collator(packing=True)(encoded)


def losses_of(detector: Qwen25VLWithDetection, batch: Batch) -> Losses:
    output = detector(batch)
    targets = Targets(batch["target_boxes_cxcywh"], batch["target_label_ids"], batch["num_boxes"])
    return LossManager(LossConfig(), 3)(output.tokens, output.head, targets, step_counts([batch]))


def test_packed_batch__has_one_row_and_no_padding(packed: Batch, encoded: list[EncodedSample]) -> None:
    total = sum(len(sample.input_ids) for sample in encoded)
    assert packed["input_ids"].shape == (1, total)
    assert packed["attention_mask"].sum() == total
    starts = (packed["position_ids"][0, 0] == 0).nonzero().flatten().tolist()
    lengths = [len(sample.input_ids) for sample in encoded]
    assert starts == [0, *torch.tensor(lengths).cumsum(0)[:-1].tolist()]


def test_packed_rows__are_before_the_answers(packed: Batch, encoded: list[EncodedSample]) -> None:
    expected = [
        sample.input_ids[slice(*span)] for sample in encoded for span in sample.student_assistant_spans
    ]
    assert torch.equal(packed["input_ids"][0, packed["student_rows"] + 1], torch.cat(expected))


def test_positions__are_the_published_models(
    bundle: Bundle, batch: Batch, encoded: list[EncodedSample]
) -> None:
    expected, _ = bundle.detector.vlm.model.get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        image_grid_thw=batch["image_grid_thw"],
        attention_mask=batch["attention_mask"],
    )
    assert torch.equal(batch["position_ids"], expected)
    for row, sample in enumerate(encoded):
        found = rope_positions(sample.mm_token_type_ids, sample.image_grid_thw, merge_size=2)
        assert torch.equal(found, expected[:, row, batch["attention_mask"][row].bool()])


@pytest.mark.usefixtures("float64_is_kept")
@pytest.mark.parametrize("way", [nullcontext, under_masks])
def test_losses_and_gradients__are_those_of_a_row_each(
    detector64: Qwen25VLWithDetection, batch: Batch, packed: Batch, way: Any
) -> None:
    names, parameters = zip(*detector64.named_parameters(), strict=True)
    results = []
    for one in (batch, packed):
        with way(detector64):
            losses = losses_of(detector64, one)
            results.append((losses, torch.autograd.grad(losses.total, parameters)))
    (padded_losses, padded_gradients), (packed_losses, packed_gradients) = results
    for name, value in padded_losses.terms.items():
        assert packed_losses.terms[name].item() == pytest.approx(value.item(), rel=0, abs=1e-9), name
    for name, one, other in zip(names, packed_gradients, padded_gradients, strict=True):
        torch.testing.assert_close(
            one, other, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_float32__differs_by_less_than_1e_5(bundle: Bundle, batch: Batch, packed: Batch) -> None:
    with torch.no_grad():
        padded, ours = bundle.detector(batch), bundle.detector(packed)
    torch.testing.assert_close(ours.tokens.nll, padded.tokens.nll, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.head.boxes_cxcywh, padded.head.boxes_cxcywh, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("float64_is_kept")
def test_a_sample__does_not_notice_its_neighbours(
    bundle: Bundle, detector64: Qwen25VLWithDetection, encoded: list[EncodedSample]
) -> None:
    collate = bundle.collator(packing=True)
    with torch.no_grad():
        alone = detector64(collate(encoded[1:2])).tokens.nll
        behind = detector64(collate([encoded[0], encoded[1]])).tokens.nll
    torch.testing.assert_close(behind[-len(alone) :], alone, rtol=0, atol=1e-10)


# Where samples would mix


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_isolation__holds_here(bundle: Bundle, implementation: str) -> None:
    with attending(bundle.detector, implementation):
        require_isolation(bundle.detector)


@pytest.mark.parametrize("bug", ["three_rows", "mask_of_ones", "one_length"])
def test_isolation__a_leak_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    """An attention that goes by positions and mask, and one that goes by lengths."""
    detector = copy.copy(bundle.detector)
    right = detector_module.per_sequence_inputs

    def wrong(model: Any, positions: Tensor, mask: Tensor | None, lengths: list[int], shape: Any) -> Any:
        if bug == "three_rows":
            return right(model, positions[1:], mask, lengths, shape)
        if bug == "mask_of_ones":
            return right(model, positions, torch.ones(positions.shape[1:], dtype=torch.int64), lengths, shape)
        return right(model, positions, mask, [sum(lengths)], shape)

    monkeypatch.setattr(detector_module, "per_sequence_inputs", wrong)
    implementation = "sdpa" if bug == "one_length" else "eager"
    leaks = pytest.raises(EnvironmentLacksError, match="packed samples would see each other")
    with attending(detector, implementation), leaks as caught:
        require_isolation(detector)
    assert caught.value.problems[0].where == "train.packing"
    assert "set train.packing to false" in caught.value.problems[0].fix
