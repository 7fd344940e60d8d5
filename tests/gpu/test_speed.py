"""What only a GPU can show of speed: kernels that are installed there compute what the plain ones do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from qwendet.config.load import build_config
from qwendet.data.samples import SampleFile
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.encoding.collate import to_device
from qwendet.loader import Bundle, load
from qwendet.model.cross_entropy import linear_cross_entropy
from qwendet.model.packing import require_isolation

pytestmark = pytest.mark.gpu
needs_flash = pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs flash-attn")
needs_liger = pytest.mark.skipif(
    importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel"
)


def bundle_of(folder: Path, **model: str) -> tuple[Bundle, Path]:
    samples = write_dataset(DEMO, folder / "train.jsonl", 4, seed=1)
    settings = {"model": {"path": "tiny", "device": "cuda", **model}, "data": {"train": str(samples)}}
    return load(build_config(settings, "test"), for_inference=True), samples


def nll_of(bundle: Bundle, samples: Path, *, packing: bool) -> torch.Tensor:
    encoder = bundle.encoder()
    items = [encoder.encode(sample, with_answer=True) for sample in SampleFile(samples)]
    batch = to_device(bundle.collator(packing=packing)(items), bundle.detector.device)
    with torch.no_grad():
        return bundle.detector(batch).tokens.nll


@needs_flash
def test_packing__under_flash_attention_isolates_and_equals_rows(tmp_path: Path) -> None:
    bundle, samples = bundle_of(tmp_path, dtype="bfloat16", attn_implementation="flash_attention_2")
    require_isolation(bundle.detector)
    packed, padded = (nll_of(bundle, samples, packing=packing) for packing in (True, False))
    assert (packed - padded).abs().mean() < 0.05


def test_packing__under_sdpa_isolates_and_equals_rows(tmp_path: Path) -> None:
    bundle, samples = bundle_of(tmp_path, dtype="float32", attn_implementation="sdpa")
    require_isolation(bundle.detector)
    packed, padded = (nll_of(bundle, samples, packing=packing) for packing in (True, False))
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-3)


def test_cross_entropy__on_the_gpu_is_the_cpus() -> None:
    rows, weight, labels = torch.randn(3000, 64), torch.randn(5000, 64), torch.randint(5000, (3000,))
    results = []
    for device in ("cpu", "cuda"):
        own_rows, own_weight = (value.to(device).requires_grad_() for value in (rows, weight))
        total, _ = linear_cross_entropy(own_rows, own_weight, labels.to(device))
        results.append([value.cpu() for value in torch.autograd.grad(total / 3000, [own_rows, own_weight])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@needs_liger
def test_liger__changes_the_losses_by_no_more_than_rounding(tmp_path: Path) -> None:
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2_5_vl

    bundle, samples = bundle_of(tmp_path, dtype="float32", attn_implementation="sdpa")
    plain = nll_of(bundle, samples, packing=False)
    apply_liger_kernel_to_qwen2_5_vl(
        model=bundle.detector.vlm, fused_linear_cross_entropy=False, cross_entropy=False
    )
    torch.testing.assert_close(nll_of(bundle, samples, packing=False), plain, rtol=0, atol=1e-3)
