"""What a forward asks of its device, seen on one that cannot answer: `meta` has shapes and no numbers.

Whatever takes a number to the host (`item`, `tolist`, `cpu`, `nonzero`, a mask as an index) is an error
there, and on a GPU the host would wait for it.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qwendet.encoding.collate import Batch, to_device
from qwendet.encoding.encode import EncodedSample
from qwendet.loader import Bundle
from qwendet.model import cross_entropy, vision_tower
from qwendet.model.detector import Qwen25VLWithDetection

META = torch.device("meta")


class CopiesFromHost(TorchDispatchMode):
    """Counts what is sent from the host to a device: with waiting, and without."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = self.flying = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        sources = {argument.device.type for argument in args if isinstance(argument, Tensor)}
        if isinstance(found, Tensor) and found.device == META and "cpu" in sources and "copy" in str(func):
            self.flying += bool(kwargs.get("non_blocking"))
            self.waiting += not kwargs.get("non_blocking")
        return found


@pytest.fixture
def nowhere(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Qwen25VLWithDetection:
    """The model on `meta`, which torch's autocast and our sizes of tiles do not know."""
    monkeypatch.setitem(cross_entropy.CHUNK_ROWS, "meta", cross_entropy.CHUNK_ROWS["cuda"])
    monkeypatch.setitem(cross_entropy.TILE_WORDS, "meta", cross_entropy.TILE_WORDS["cuda"])
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")  # the published forward counts image tokens
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    return copy.deepcopy(bundle.detector).to("meta")


@pytest.fixture(params=[False, True], ids=["padded", "packed"])
def sent(request: pytest.FixtureRequest, bundle: Bundle, encoded: list[EncodedSample]) -> Batch:
    """A training batch on `meta`."""
    return to_device(bundle.collator(packing=request.param)(encoded), META)


def test_training_forward__never_asks_its_device(nowhere: Qwen25VLWithDetection, sent: Batch) -> None:
    with CopiesFromHost() as copies:
        output = nowhere(sent)
        assert output.tokens is not None
        assert output.head is not None
        (output.tokens.student_sum + output.tokens.teacher_sum + output.head.logits.sum()).backward()
    assert (copies.waiting, copies.flying) == (0, 2)  # the vision tower's positions and orders


def test_planted__positions_counted_in_the_forward_are_noticed(
    nowhere: Qwen25VLWithDetection, sent: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Qwen25VLWithDetection.run_language_model

    def read(self: Qwen25VLWithDetection, batch: Batch, *inputs: Tensor) -> Tensor:
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        positions, _ = self.vlm.model.get_rope_index(**{name: batch[name].cpu() for name in names})
        return sound(self, batch | {"position_ids": positions}, *inputs)

    monkeypatch.setattr(Qwen25VLWithDetection, "run_language_model", read)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        nowhere(sent)


def test_planted__a_copy_that_is_waited_for_is_counted(
    nowhere: Qwen25VLWithDetection, sent: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision_tower, "_sent", lambda found, device: found.to(device))
    with CopiesFromHost() as copies:
        nowhere(sent)
    assert (copies.waiting, copies.flying) == (2, 0)
