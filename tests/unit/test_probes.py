"""The targets that pre-training asks the hidden states for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.probes import NOTHING, Probes, image_targets
from qwendet.config.schema import Config, DataConfig, ModelConfig
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.families.choose import family_by_name
from qwendet.loader import load


@pytest.fixture(scope="module", params=["tiny", "tiny-qwen3-vl-untrained"])
def probed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Probes, and a batch of an image of 4 × 3 tokens with two boxes and one of 2 × 2 without.

    The boxes come along as answers write them, a small one within the token of row 1, column 2; a large one.
    """
    folder: Path = tmp_path_factory.mktemp("probes")
    family = family_by_name(request.param)
    side = family.limits.unit
    Image.new("RGB", (4 * side, 3 * side)).save(folder / "a.png")
    Image.new("RGB", (2 * side, 2 * side)).save(folder / "b.png")
    model = ModelConfig(path=request.param, device="cpu", dtype="float32")
    bundle = load(Config(model=model, data=DataConfig(labels=("red ring", "blue ring"))), for_inference=False)
    corners = torch.tensor([[9, 5, 11, 7], [0, 0, 7, 10]]) / 4  # in tokens
    in_image = [tuple(box) for box in (corners * side).tolist()]
    small, large = DetectedObject(in_image[0], "red ring"), DetectedObject(in_image[1], "blue ring")
    width, height = family.answer_size((4 * side, 3 * side))
    written = corners * torch.tensor([width / 4, height / 3, width / 4, height / 3])
    turns = [Turn("a.png", (small, large), root=folder), Turn("b.png", (), root=folder)]
    samples = [bundle.encoder().encode(Sample(turn), with_answer=True) for turn in turns]
    boxes = [[*box, label] for box, label in zip(written.tolist(), (0, 1), strict=True)]
    return Probes(bundle), bundle, bundle.collator()(samples), boxes


def test_image_targets__say_where_tokens_lie_and_what_covers_them(probed) -> None:
    _, bundle, batch, (small, large) = probed
    tokens, positions, boxes = image_targets(batch, bundle.processor.family)
    assert (batch["input_ids"].flatten()[tokens] == bundle.detector.config.image_token_id).all()
    assert positions.tolist() == [[row, column] for row in range(3) for column in range(4)] + [
        [0, 0], [0, 1], [1, 0], [1, 1]
    ]  # fmt: skip
    nothing = [NOTHING] * 5
    expected = [large, large, nothing, nothing, large, large, small, nothing] + [nothing] * 8
    torch.testing.assert_close(boxes, torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=0)


def test_written_objects__change_where_an_object_opens(probed) -> None:
    probes, bundle, batch, expected = probed
    boxes = probes._written_objects(batch).unflatten(0, batch["input_ids"].shape)
    rows = batch["student_rows"][batch["student_rows"] < batch["input_ids"].shape[1]]
    start, end = int(rows[0]) + 1, int(rows[-1]) + 2
    small, large = ([float(round(side)) for side in box] for box in expected)  # the answer is sorted by top
    written = [box.tolist() for box in boxes[0, start:end]]
    assert written[0] == large
    assert written[-1] == small
    change = written.index(small)
    assert written[:change] == [large] * change
    assert "{" in bundle.processor.tokenizer.decode(batch["input_ids"][0, start + change])
    assert (boxes[0, :start] == NOTHING).all()
    assert (boxes[1] == NOTHING).all()


def test_probes__are_lower_for_a_batch_they_have_learned(probed) -> None:
    probes, bundle, batch, _ = probed
    optimizer = torch.optim.Adam(probes.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        with torch.no_grad():
            bundle.detector(batch)
        loss = probes(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
