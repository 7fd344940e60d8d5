"""The targets that pre-training asks the hidden states for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.probes import NOTHING, Probes, image_targets
from qwendet.config.schema import Config, DataConfig
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.loader import load


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory):
    """Probes, and a batch of an image of 4 × 3 tokens with two boxes and one of 2 × 2 without."""
    folder: Path = tmp_path_factory.mktemp("probes")
    Image.new("RGB", (112, 84)).save(folder / "a.png")
    Image.new("RGB", (56, 56)).save(folder / "b.png")
    config = Config(data=DataConfig(labels=("red ring", "blue ring")))
    bundle = load(config, for_inference=False)
    small = DetectedObject((60, 30, 80, 54), "red ring")  # within the token of row 1, column 2
    large = DetectedObject((0, 0, 50, 70), "blue ring")
    turns = [Turn("a.png", (small, large), root=folder), Turn("b.png", (), root=folder)]
    samples = [bundle.encoder().encode(Sample(turn), with_answer=True) for turn in turns]
    return Probes(bundle), bundle, bundle.collator()(samples)


def test_image_targets__say_where_tokens_lie_and_what_covers_them(probed) -> None:
    _, bundle, batch = probed
    tokens, positions, boxes = image_targets(batch)
    assert (batch["input_ids"].flatten()[tokens] == bundle.detector.config.image_token_id).all()
    assert positions.tolist() == [[row, column] for row in range(3) for column in range(4)] + [
        [0, 0], [0, 1], [1, 0], [1, 1]
    ]  # fmt: skip
    large, small, nothing = [0, 0, 50, 70, 1], [60, 30, 80, 54, 0], [NOTHING] * 5
    expected = [large, large, nothing, nothing, large, large, small, nothing] + [nothing] * 8
    torch.testing.assert_close(boxes, torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=0)


def test_written_objects__change_where_an_object_opens(probed) -> None:
    probes, bundle, batch = probed
    boxes = probes._written_objects(batch).unflatten(0, batch["input_ids"].shape)
    ((start, end),) = batch["student_assistant_spans"][0]
    large, small = [0.0, 0.0, 50.0, 70.0, 1.0], [60.0, 30.0, 80.0, 54.0, 0.0]  # the answer is sorted by top
    written = [box.tolist() for box in boxes[0, start:end]]
    assert written[0] == large
    assert written[-1] == small
    change = written.index(small)
    assert written[:change] == [large] * change
    assert "{" in bundle.processor.tokenizer.decode(batch["input_ids"][0, start + change])
    assert (boxes[0, :start] == NOTHING).all()
    assert (boxes[1] == NOTHING).all()


def test_probes__are_lower_for_a_batch_they_have_learned(probed) -> None:
    probes, bundle, batch = probed
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
