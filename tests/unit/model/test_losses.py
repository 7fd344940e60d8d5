"""The loss: values by hand, means over the whole step, and a gradient for every term at its weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from qwendet.config.schema import LossConfig
from qwendet.data.samples import Sample
from qwendet.encoding.collate import Batch
from qwendet.encoding.encode import EncodedSample
from qwendet.loader import Bundle
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import HeadOutput
from qwendet.model.losses import TERMS, Losses, LossManager, TokenLosses, step_counts
from qwendet.model.matching import Targets
from qwendet.model.precision import float32_or_wider

WEIGHTS = LossConfig(
    lm_loss_weight=0.9,
    teacher_loss_weight=0.3,
    student_loss_weight=1.1,
    detection_loss_weight=0.7,
    class_weight=2.0,
    l1_weight=5.0,
    giou_weight=3.0,
)
LN3 = math.log(3)  # the logit of 0.75
IS_STUDENT = [False, False, True, True, True]


def token_losses(values: Sequence[float], is_student: Sequence[bool] = IS_STUDENT) -> TokenLosses:
    nll, student = torch.tensor(values, dtype=torch.float64), torch.tensor(is_student, dtype=torch.bool)
    teacher_sum, student_sum = (nll[rows].sum().requires_grad_() for rows in (~student, student))
    return TokenLosses(nll, student, teacher_sum, student_sum)


def counts(teacher: float, student: float, boxes: float) -> Tensor:
    return torch.tensor([teacher, student, boxes], dtype=torch.float64)


def targets_of(batch: Batch) -> Targets:
    return Targets(batch["target_boxes_cxcywh"], batch["target_label_ids"], batch["num_boxes"])


def run(
    detector: Qwen25VLWithDetection, batch: Batch, step: Tensor | None = None, weights: LossConfig = WEIGHTS
) -> Losses:
    output = detector(batch)
    step = step_counts([batch]) if step is None else step
    return LossManager(weights, one_to_many=3)(output.tokens, output.head, targets_of(batch), step)


# Values by hand


def test_token_terms__by_hand() -> None:
    """Of a step with 4 teacher and 6 student tokens, of which this micro-batch has 2 and 3."""
    losses = LossManager(WEIGHTS, 1)(token_losses([1.0, 2.0, 3.0, 4.0, 5.0]), None, None, counts(4, 6, 0))
    values = {name: term.item() for name, term in losses.terms.items()}
    assert values == pytest.approx({"lm": 15 / 10, "teacher": 3 / 4, "student": 12 / 6})
    assert losses.total.item() == pytest.approx(0.9 * 1.5 + 0.3 * 0.75 + 1.1 * 2.0)


def prediction(
    logits: list[list[float]], boxes: list[list[float]], valid: list[bool], stages: tuple[int, ...]
) -> HeadOutput:
    return HeadOutput(torch.tensor([logits]), torch.tensor([boxes]), torch.tensor([valid]), stages)


ONE_BOX = Targets(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([1]), [1])
# Dense stage: the box itself, and one far off. Last layer: the box shifted by half its width (IoU 1/3).
THREE = prediction(
    [[0.0, LN3], [LN3, 0.0], [0.0, 0.0]],
    [[0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1], [0.7, 0.5, 0.4, 0.4]],
    [True, True, True],
    (2, 1),
)


def test_detection_terms__by_hand() -> None:
    losses = LossManager(WEIGHTS, 1)(token_losses([], []), THREE, ONE_BOX, counts(0, 0, 2))
    dense = (
        0.5**2 * math.log(2)  # p 0.5, wanted 0
        + 0.25**2 * math.log(4 / 3)  # p 0.75, wanted its IoU of 1
        + 0.75**2 * math.log(4)  # p 0.75, wanted 0
        + 0.5**2 * math.log(2)
    )
    last = 0.5**2 * math.log(2) + (1 / 2 - 1 / 3) ** 2 * math.log(2)
    values = {name: losses.terms[name].item() for name in ("class", "l1", "giou", "detection")}
    expected = {"class": (dense + last) / 2, "l1": 0.2 / 2, "giou": (1 - 1 / 3) / 2}
    expected["detection"] = 2 * expected["class"] + 5 * expected["l1"] + 3 * expected["giou"]
    assert values == pytest.approx(expected, abs=1e-6)
    assert losses.total.item() == pytest.approx(0.7 * expected["detection"], abs=1e-6)


LAST = 0.5**2 * math.log(2) + (1 / 2 - 1 / 3) ** 2 * math.log(2)
GOOD = 0.5**2 * math.log(2) + 0.25**2 * math.log(4 / 3)  # p 0.5, wanted 0; p 0.75, wanted 1
FAR = 0.75**2 * math.log(4) + 0.5**2 * math.log(2)  # p 0.75 and 0.5, both wanted 0
FAR_L1 = 0.4 + 0.4 + 0.3 + 0.3
HULL = 0.65 * 0.65  # of (0.05, 0.05, 0.15, 0.15) and (0.3, 0.3, 0.7, 0.7)
FAR_GIOU = -(HULL - 0.16 - 0.01) / HULL


@pytest.mark.parametrize(
    ("valid", "repeats", "expected"),
    [
        pytest.param(
            [True, True, True],
            2,
            [(GOOD + FAR) / 2 + LAST, FAR_L1 / 2 + 0.2, (1 - FAR_GIOU) / 2 + 2 / 3],
            id="the dense stage is shared: both of its predictions answer, each counts half",
        ),
        pytest.param(
            [True, False, True],
            1,
            [GOOD + LAST, 0.2, 2 / 3],
            id="padding costs nothing: the far one is padding",
        ),
    ],
)
def test_detection_terms__of_matched_and_padded_predictions(
    valid: list[bool], repeats: int, expected: list[float]
) -> None:
    head = prediction(THREE.logits[0].tolist(), THREE.boxes_cxcywh[0].tolist(), valid, (2, 1))
    losses = LossManager(WEIGHTS, repeats)(token_losses([], []), head, ONE_BOX, counts(0, 0, 1))
    values = [losses.terms[name].item() for name in ("class", "l1", "giou")]
    assert values == pytest.approx(expected, abs=1e-6)


def test_class_term__does_not_train_the_boxes_that_it_is_measured_by() -> None:
    boxes = THREE.boxes_cxcywh.clone().requires_grad_()
    logits = THREE.logits.clone().requires_grad_()
    head = HeadOutput(logits, boxes, THREE.valid, THREE.stage_sizes)
    terms = LossManager(WEIGHTS, 1)(token_losses([], []), head, ONE_BOX, counts(0, 0, 1)).terms
    by_logits, by_boxes = torch.autograd.grad(terms["class"], [logits, boxes], allow_unused=True)
    assert by_logits.abs().sum() > 0
    assert by_boxes is None or not by_boxes.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_detection_terms__of_half_precision_are_computed_in_float32(dtype: torch.dtype) -> None:
    half = HeadOutput(THREE.logits.to(dtype), THREE.boxes_cxcywh.to(dtype), THREE.valid, THREE.stage_sizes)
    same = HeadOutput(half.logits.float(), half.boxes_cxcywh.float(), THREE.valid, THREE.stage_sizes)
    found, expected = (
        LossManager(WEIGHTS, 1)(token_losses([], []), head, ONE_BOX, counts(0, 0, 1)).terms
        for head in (half, same)
    )
    for name in ("class", "l1", "giou"):
        assert (found[name].dtype, found[name].item()) == (torch.float32, expected[name].item())


@pytest.mark.parametrize(
    ("dtype", "raised"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_float32_or_wider__raises_half_precision(dtype: torch.dtype, raised: torch.dtype) -> None:
    assert float32_or_wider(dtype) == raised


def test_token_terms__have_the_type_of_the_token_losses() -> None:
    """Counts are float64, so that large ones are exact; the loss is not."""
    one = torch.tensor(1.0, requires_grad=True)
    tokens = TokenLosses(torch.ones(2), torch.tensor([False, True]), one, one)
    losses = LossManager(WEIGHTS, 1)(tokens, None, None, counts(1, 1, 0))
    assert {term.dtype for term in (losses.total, *losses.terms.values())} == {torch.float32}


def test_token_terms__without_a_head_targets_are_no_matter() -> None:
    losses = LossManager(WEIGHTS, 1)(token_losses([1.0], [True]), None, ONE_BOX, counts(0, 1, 1))
    assert losses.terms.keys() == {"lm", "teacher", "student"}
    assert losses.total.item() == pytest.approx(0.9 + 1.1)


@pytest.mark.parametrize(("teacher", "student"), [(1, 0), (0, 1), (0, 0)])
def test_token_terms__a_count_below_1_divides_by_1(teacher: int, student: int) -> None:
    """Sums of 2 and 3 that belong to no counted token would still be divided by 1, not by 0."""
    losses = LossManager(WEIGHTS, 1)(
        token_losses([2.0, 3.0], [False, True]), None, None, counts(teacher, student, 0)
    )
    values = [losses.terms[name].item() for name in ("lm", "teacher", "student")]
    assert values == [5.0, 2.0, 3.0]


def test_step_counts__by_hand() -> None:
    batch = {
        "teacher_rows": torch.tensor([1, 2, 3, 6]),
        "student_rows": torch.tensor([8, 9, 15, 16, 17, 18, 19]),
        "num_boxes": [3, 1],
    }
    found = step_counts([batch, batch | {"num_boxes": [0, 0]}])
    assert (found.tolist(), found.dtype) == ([8.0, 14.0, 4.0], torch.float64)


def test_step_counts__tokens_and_boxes_of_all_micro_batches(
    batch: Batch, encoded: list[EncodedSample]
) -> None:
    def tokens(name: str) -> int:
        return sum(end - start for sample in encoded for start, end in getattr(sample, name))

    boxes = sum(len(sample.label_ids) for sample in encoded)
    expected = [tokens("teacher_assistant_spans"), tokens("student_assistant_spans"), boxes]
    assert step_counts([batch]).tolist() == expected
    assert step_counts([batch, batch]).tolist() == [2 * count for count in expected]
    assert (batch["labels"] != -100).sum() == expected[0] + expected[1]
    assert step_counts([]).tolist() == [0, 0, 0]


# Means over the whole step


def gradients(total: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def test_accumulation__four_batches_of_one_are_one_batch_of_four(
    bundle: Bundle, detector64: Qwen25VLWithDetection, encoded: list[EncodedSample], batch: Batch
) -> None:
    teacher_tokens = [sum(e - s for s, e in sample.teacher_assistant_spans) for sample in encoded]
    assert teacher_tokens[1] == 0
    assert len(set(teacher_tokens)) > 2
    assert batch["num_boxes"][2] == 0
    parameters = list(detector64.parameters())
    together = run(detector64, batch)
    expected = gradients(together.total, parameters)
    ones = [bundle.collator()([sample]) for sample in encoded]
    step = step_counts(ones)
    assert torch.equal(step, step_counts([batch]))
    terms = dict.fromkeys(TERMS, 0.0)
    accumulated = [torch.zeros_like(parameter) for parameter in parameters]
    for one in ones:
        losses = run(detector64, one, step)
        terms = {name: terms[name] + losses.terms[name].item() for name in TERMS}
        for total, gradient in zip(accumulated, gradients(losses.total, parameters), strict=True):
            total += gradient
    # The head's loss is computed in float32, everything else in float64.
    assert terms == pytest.approx({name: term.item() for name, term in together.terms.items()}, rel=1e-5)
    for (name, _), one, other in zip(detector64.named_parameters(), accumulated, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max() + 1e-9, name


def test_accumulation__dividing_by_each_micro_batchs_own_count_is_noticed(
    bundle: Bundle, detector64: Qwen25VLWithDetection, encoded: list[EncodedSample], batch: Batch
) -> None:
    """The usual mistake, planted: the mean of the micro-batches' means is another number."""
    with torch.no_grad():
        together = run(detector64, batch)
        apart = [run(detector64, bundle.collator()([sample])) for sample in encoded]
    for name in ("lm", "teacher", "student"):
        mean_of_means = sum(losses.terms[name].item() for losses in apart) / 4
        assert abs(mean_of_means - together.terms[name].item()) > 1e-4


# Empty sets


@pytest.fixture(scope="module")
def box_free(bundle: Bundle, encoded: list[EncodedSample]) -> Batch:
    return bundle.collator()([encoded[2], encoded[2]])


@pytest.fixture(scope="module")
def prompts(bundle: Bundle, lessons: list[Sample]) -> Batch:
    """Without answers and teachers: no label at all."""
    encoder = bundle.encoder()
    bare = [Sample(lesson.student, (), lesson.where) for lesson in lessons[:2]]
    return bundle.collator()([encoder.encode(lesson, with_answer=False) for lesson in bare])


def test_box_free_batch__is_finite_and_every_parameter_of_the_head_gets_a_gradient(
    detector64: Qwen25VLWithDetection, box_free: Batch
) -> None:
    losses = run(detector64, box_free)
    assert (losses.terms["l1"].item(), losses.terms["giou"].item()) == (0.0, 0.0)
    assert losses.terms["class"].item() > 0
    named = dict(detector64.head.named_parameters())
    found = torch.autograd.grad(losses.total, named.values(), allow_unused=True)
    assert [name for name, gradient in zip(named, found, strict=True) if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in found)
    moved = {name.split(".")[0] for name, gradient in zip(named, found, strict=True) if gradient.any()}
    assert {"memory", "labels", "classify", "query", "layers", "norm"} <= moved


def test_class_loss__of_a_box_free_step_is_divided_by_one(
    detector64: Qwen25VLWithDetection, box_free: Batch
) -> None:
    with torch.no_grad():
        none = run(detector64, box_free, counts(1, 1, 0)).terms["class"]
        one = run(detector64, box_free, counts(1, 1, 1)).terms["class"]
    assert none.item() == one.item()


def test_batch_without_labels__has_differentiable_zeros(
    detector64: Qwen25VLWithDetection, prompts: Batch
) -> None:
    losses = run(detector64, prompts)
    for name in ("lm", "teacher", "student"):
        assert losses.terms[name].item() == 0.0
        (gradient,) = torch.autograd.grad(
            losses.terms[name], [detector64.vlm.lm_head.weight], retain_graph=True
        )
        assert not gradient.any()
    assert losses.total.isfinite()


def test_batch_without_teachers__has_a_teacher_term_of_0(
    bundle: Bundle, detector64: Qwen25VLWithDetection, encoded: list[EncodedSample]
) -> None:
    losses = run(detector64, bundle.collator()([encoded[1]]))
    assert losses.terms["teacher"].item() == 0.0
    assert losses.terms["lm"].item() == pytest.approx(losses.terms["student"].item())
    assert losses.terms["teacher"].requires_grad


# Gradients: each term at its weight


def test_total__its_derivative_by_each_term_is_the_terms_weight(
    detector64: Qwen25VLWithDetection, batch: Batch
) -> None:
    losses = run(detector64, batch)
    found = dict(
        zip(TERMS, torch.autograd.grad(losses.total, [losses.terms[name] for name in TERMS]), strict=True)
    )
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "lm": 0.9,
            "teacher": 0.3,
            "student": 1.1,
            "detection": 0.7,
            "class": 0.7 * 2.0,
            "l1": 0.7 * 5.0,
            "giou": 0.7 * 3.0,
        }
    )


def test_weights__each_changes_the_gradient(detector64: Qwen25VLWithDetection, batch: Batch) -> None:
    parameters = [
        detector64.vlm.model.language_model.layers[-1].mlp.up_proj.weight,
        detector64.head.memory.patches[1].weight,
    ]
    output = detector64(batch)

    def of(weights: LossConfig) -> list[Tensor]:
        losses = LossManager(weights, 1)(output.tokens, output.head, targets_of(batch), step_counts([batch]))
        return list(torch.autograd.grad(losses.total, parameters, retain_graph=True))

    whole = of(WEIGHTS)
    for name in TERMS:
        key = f"{name}_weight" if f"{name}_weight" in LossConfig.model_fields else f"{name}_loss_weight"
        without = of(WEIGHTS.model_copy(update={key: 0.0}))
        changes = [(one - other).abs().max().item() for one, other in zip(whole, without, strict=True)]
        assert changes[0] > 1e-7, name
        assert (changes[1] > 1e-7) == (name in ("detection", "class", "l1", "giou")), name


def test_boxes__of_a_layer_do_not_train_the_boxes_before(
    detector64: Qwen25VLWithDetection, batch: Batch
) -> None:
    _, boxes, valid = detector64(batch, with_tokens=False).head.final()
    regressors = [detector64.head.dense_box[-1].bias, *(box[-1].bias for box in detector64.head.box)]
    dense, first, last = torch.autograd.grad(boxes[valid].sum(), regressors)
    assert not dense.any()
    assert not first.any()
    assert last.abs().min() > 0


# The first bug of the original scripts: terms that are logged and never back-propagated


def assert_every_token_pulls_at_its_weight(make_manager: Callable[[LossConfig, int], LossManager]) -> None:
    """A token's derivative, that of its sum, is its terms' weights, each over the tokens of that term."""
    tokens = token_losses([1.0, 2.0, 3.0, 4.0, 5.0])
    losses = make_manager(WEIGHTS, 1)(tokens, None, None, counts(2, 3, 0))
    found = torch.autograd.grad(losses.total, [tokens.teacher_sum, tokens.student_sum])
    assert [gradient.item() for gradient in found] == pytest.approx([0.9 / 5 + 0.3 / 2, 0.9 / 5 + 1.1 / 3])


class WithoutGradient(LossManager):
    """Adds a term up as a number, as ``.item()`` does: the total is right and the gradient is not."""

    term = ""

    def _total(self, terms: dict[str, Tensor]) -> Tensor:
        return super()._total(terms | {self.term: terms[self.term].detach()})


def test_token_terms__every_one_has_its_gradient() -> None:
    assert_every_token_pulls_at_its_weight(LossManager)


@pytest.mark.parametrize("term", ["teacher", "student", "lm"])
def test_token_terms__a_detached_one_is_noticed(term: str) -> None:
    planted = type("Planted", (WithoutGradient,), {"term": term})
    tokens = token_losses([1.0, 2.0, 3.0, 4.0, 5.0])
    step = counts(2, 3, 0)
    assert (
        planted(WEIGHTS, 1)(tokens, None, None, step).total
        == LossManager(WEIGHTS, 1)(tokens, None, None, step).total
    )
    with pytest.raises(AssertionError):
        assert_every_token_pulls_at_its_weight(planted)
