"""What a process says when another one of its run is gone, or something else went wrong."""

from __future__ import annotations

import pytest
import torch

from qwendet.errors import EnvironmentLacksError
from qwendet.inference.sharding import peers_needed

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{GLOO}pair.cc:537] Read error [127.0.0.1]:10158: Connection reset by peer."),
        RuntimeError(f"{GLOO}pair.cc:547] Connection closed by peer [127.0.0.1]:10158"),
        RuntimeError(f"{GLOO}unbound_buffer.cc:119] Timed out waiting 1800000ms for send operation"),
        torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0."),
    ],
)
def test_a_lost_peer__is_told_in_plain_words(error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(EnvironmentLacksError) as caught, peers_needed():
        raise error
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 3
    assert problem.what == f"another process of this run is gone ({error})"
    assert problem.where == "rank 3"
    assert problem.fix.startswith("the launcher names it")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), torch.OutOfMemoryError("no memory")])
def test_another_error__is_left_as_it_is(error: RuntimeError) -> None:
    with pytest.raises(RuntimeError) as caught, peers_needed():
        raise error
    assert caught.value is error
