"""Matching: the cheapest assignment in every stage of every sample, by brute force and by scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from qwendet.config.schema import LossConfig
from qwendet.model.head import HeadOutput
from qwendet.model.matching import Matches, Targets, match, matching_cost

WEIGHTS = LossConfig(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)
STAGES = (7, 5, 5)
NUM_CLASSES = 3


def predictions(seed: int = 0, samples: int = 3, stages: tuple[int, ...] = STAGES) -> HeadOutput:
    generator = torch.Generator().manual_seed(seed)
    count = sum(stages)
    boxes = torch.rand(samples, count, 4, generator=generator) * torch.tensor([1, 1, 0.5, 0.5])
    return HeadOutput(
        logits=torch.randn(samples, count, NUM_CLASSES, generator=generator),
        boxes_cxcywh=boxes + torch.tensor([0, 0, 0.01, 0.01]),
        valid=torch.ones(samples, count, dtype=torch.bool),
        stage_sizes=stages,
    )


def targets(num_boxes: list[int], seed: int = 1) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    total = sum(num_boxes)
    return Targets(
        boxes_cxcywh=torch.rand(total, 4, generator=generator) * 0.4 + 0.1,
        label_ids=torch.randint(NUM_CLASSES, (total,), generator=generator),
        num_boxes=num_boxes,
    )


def pairs(
    found: Matches, output: HeadOutput, wanted: Targets
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """By sample and stage: predictions of the stage and boxes of the sample that belong together."""
    stage_starts = np.cumsum([0, *output.stage_sizes])
    first_box = np.cumsum([0, *wanted.num_boxes])
    result: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for sample, prediction, target in torch.stack([found.sample, found.prediction, found.target], 1).tolist():
        stage = int(np.searchsorted(stage_starts, prediction, side="right")) - 1
        assert first_box[sample] <= target < first_box[sample + 1], "a box of another sample"
        pair = (prediction - int(stage_starts[stage]), target - int(first_box[sample]))
        result.setdefault((sample, stage), []).append(pair)
    return result


def stage_cost(output: HeadOutput, wanted: Targets, sample: int, stage: int) -> np.ndarray:
    start = sum(output.stage_sizes[:stage])
    cost = matching_cost(output, wanted, WEIGHTS)[sample, start : start + output.stage_sizes[stage]]
    return cost[:, : wanted.num_boxes[sample]].double().numpy()


def total(cost: np.ndarray, chosen: list[tuple[int, int]]) -> float:
    return sum(cost[prediction, box] for prediction, box in chosen)


@pytest.mark.parametrize(
    ("logit", "box", "focal", "l1", "giou"),
    [
        pytest.param(
            np.log(3),
            (0.7, 0.5, 0.4, 0.4),
            0.25 * 0.25**2 * np.log(4 / 3) - 0.75 * 0.75**2 * np.log(4),
            0.2,
            1 / 3,
            id="p 0.75, shifted by half its width: the two fill their hull",
        ),
        pytest.param(
            0.0,
            (0.5, 0.4, 0.2, 0.2),
            (0.25 - 0.75) * 0.5**2 * np.log(2),
            0.1 + 0.2 + 0.2,
            1 / 4,
            id="p 0.5, a quarter within the box, along both axes",
        ),
        pytest.param(-200.0, (0.5, 0.5, 0.4, 0.4), 0.25 * -np.log(1e-8), 0.0, 1.0, id="p 0"),
        pytest.param(200.0, (0.5, 0.5, 0.4, 0.4), 0.75 * np.log(1e-8), 0.0, 1.0, id="p 1"),
    ],
)
def test_matching_cost__of_one_pair_by_hand(
    logit: float, box: tuple[float, ...], focal: float, l1: float, giou: float
) -> None:
    output = HeadOutput(
        torch.tensor([[[9.0, logit]]]), torch.tensor([[box]]), torch.ones(1, 1, dtype=torch.bool), (1,)
    )
    wanted = Targets(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([1]), [1])
    assert matching_cost(output, wanted, WEIGHTS).item() == pytest.approx(
        2 * focal + 5 * l1 - 2 * giou, abs=1e-5
    )


def test_matching_cost__in_half_precision_is_that_of_the_same_numbers_in_float32() -> None:
    exact, wanted = predictions(), targets([3, 1, 2])
    half = HeadOutput(exact.logits.bfloat16(), exact.boxes_cxcywh.bfloat16(), exact.valid, STAGES)
    same = HeadOutput(half.logits.float(), half.boxes_cxcywh.float(), exact.valid, STAGES)
    found = matching_cost(half, wanted, WEIGHTS)
    assert found.dtype == torch.float32
    assert torch.equal(found, matching_cost(same, wanted, WEIGHTS))


def test_match__needs_a_repeat_for_each_stage() -> None:
    with pytest.raises(ValueError, match="zip"):
        match(predictions(), targets([1, 0, 0]), WEIGHTS, (1, 1))


@pytest.mark.parametrize("seed", range(5))
def test_match__is_the_cheapest_of_all_assignments(seed: int) -> None:
    output, wanted = predictions(seed), targets([3, 1, 2], seed)
    found = pairs(match(output, wanted, WEIGHTS, (1, 1, 1)), output, wanted)
    assert set(found) == {(sample, stage) for sample in range(3) for stage in range(3)}
    for (sample, stage), chosen in found.items():
        cost, boxes = stage_cost(output, wanted, sample, stage), wanted.num_boxes[sample]
        best = min(
            total(cost, list(zip(order, range(boxes), strict=True)))
            for order in itertools.permutations(range(len(cost)), boxes)
        )
        assert sorted(box for _, box in chosen) == list(range(boxes))
        assert total(cost, chosen) == pytest.approx(best, abs=1e-5)


def test_match__is_scipys_in_each_sample() -> None:
    output, wanted = predictions(7, samples=6, stages=(40, 20)), targets([9, 0, 20, 1, 5, 13])
    found = pairs(match(output, wanted, WEIGHTS, (1, 1)), output, wanted)
    for (sample, stage), chosen in found.items():
        rows, columns = linear_sum_assignment(stage_cost(output, wanted, sample, stage))
        assert sorted(chosen) == sorted(zip(rows.tolist(), columns.tolist(), strict=True))
    assert {sample for sample, _ in found} == {0, 2, 3, 4, 5}


def test_match__repeats_give_each_box_several_predictions() -> None:
    output, wanted = predictions(), targets([2, 1, 0])
    found = pairs(match(output, wanted, WEIGHTS, (3, 1, 1)), output, wanted)
    for sample, boxes in ((0, 2), (1, 1)):
        dense = found[sample, 0]
        assert len({prediction for prediction, _ in dense}) == 3 * boxes
        assert sorted(box for _, box in dense) == sorted(list(range(boxes)) * 3)
        cost = np.tile(stage_cost(output, wanted, sample, 0), (1, 3))
        assert total(cost, dense) == pytest.approx(cost[linear_sum_assignment(cost)].sum(), abs=1e-5)
        assert len(found[sample, 1]) == len(found[sample, 2]) == boxes


def test_match__more_boxes_than_queries_leaves_the_costliest_out() -> None:
    output, wanted = predictions(stages=(3,), samples=1), targets([5])
    (chosen,) = pairs(match(output, wanted, WEIGHTS, (2,)), output, wanted).values()
    assert len({prediction for prediction, _ in chosen}) == len(chosen) == 3
    cost = stage_cost(output, wanted, 0, 0)
    best = min(
        total(cost, list(enumerate(boxes)))
        for boxes in itertools.product(range(5), repeat=3)
        if max(boxes.count(box) for box in boxes) <= 2
    )
    assert total(cost, chosen) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("num_boxes", [[0, 0, 0], []])
def test_match__without_boxes_finds_nothing(num_boxes: list[int]) -> None:
    output, wanted = predictions(samples=len(num_boxes)), targets(num_boxes)
    found = match(output, wanted, WEIGHTS, (1, 1, 1))
    assert [part.shape for part in (found.sample, found.prediction, found.target)] == [(0,)] * 3
    assert found.prediction.dtype == torch.int64


def test_match__padded_predictions_answer_for_nothing_however_good() -> None:
    output, wanted = predictions(samples=2, stages=(6, 4)), targets([2, 2])
    output.valid[1, [0, 1, 2, 6, 7]] = False
    output.boxes_cxcywh[1, :2] = wanted.boxes_cxcywh[2:]
    output.logits[1, :2] = 20.0
    found = match(output, wanted, WEIGHTS, (2, 1))
    assert output.valid[found.sample, found.prediction].all()
    assert [len(chosen) for chosen in pairs(found, output, wanted).values()] == [4, 2, 3, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_match__numbers_that_are_not_finite_are_matched_last(value: float) -> None:
    output, wanted = predictions(samples=1, stages=(4,)), targets([2])
    output.boxes_cxcywh[0, :2] = value
    output.logits[0, 2] = value
    found = match(output, wanted, WEIGHTS, (1,))
    assert sorted(found.target.tolist()) == [0, 1]
    assert 3 in found.prediction.tolist()


def test_match__does_not_depend_on_batch_mates() -> None:
    output, wanted = predictions(samples=3), targets([2, 4, 3])
    together = pairs(match(output, wanted, WEIGHTS, (2, 1, 1)), output, wanted)
    own = HeadOutput(output.logits[1:2], output.boxes_cxcywh[1:2], output.valid[1:2], output.stage_sizes)
    own_targets = Targets(wanted.boxes_cxcywh[2:6], wanted.label_ids[2:6], [4])
    alone = pairs(match(own, own_targets, WEIGHTS, (2, 1, 1)), own, own_targets)
    assert {stage: chosen for (sample, stage), chosen in together.items() if sample == 1} == {
        stage: chosen for (_, stage), chosen in alone.items()
    }
