"""Nobody but ``families/`` names a family, its classes, tokens, ids or patch size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FORBIDDEN = {
    "family": r"(?i:qwen[-_ ]?[23]?([._]?5)?[-_ ]?vl)\w*|(?i:qwen[-_ ]?3[._][5-9])\w*|Qwen3_5\w*",
    "token": r"<\|\w+\|>|</?think>",
    "token id": r"\b(1516[4-9]\d|1519\d\d|15206\d|2480[4-9]\d|248[13]\d\d)\b",
    "patch size": r"\b(patch_size|merge_size|unit|side)\s*=\s*\d\d|\b(14|16|28|32)(\s\*\s|\s?×\s?)\d+",
}
WHAT_THE_DETECTOR_IS_CALLED = "Qwen25VLWithDetection"  # a public name, whatever family it holds
ALLOWED = {
    "demo/tiny.py": r".*",  # an embedded model is a model of some family, and writes its config
    "config/schema.py": r"qwen[\w-]+",  # model.path of the embedded models, and whose they are
    "answers/": r"<\|\w+\|>",  # a model's answers are read in any family's form, published or not
}


def named_in(text: str) -> list[str]:
    found = [match.group() for pattern in FORBIDDEN.values() for match in re.finditer(pattern, text)]
    return [word for word in found if word != WHAT_THE_DETECTOR_IS_CALLED]


def test_nobody_else__names_a_family(repo_root: Path) -> None:
    package, offenders = repo_root / "qwendet", []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if name.startswith("families/"):
            continue
        allowed = [words for place, words in ALLOWED.items() if name.startswith(place)]
        offenders += [
            f"{name}: {word}"
            for word in named_in(path.read_text(encoding="utf-8"))
            if not any(re.fullmatch(words, word) for words in allowed)
        ]
    assert offenders == []


@pytest.mark.parametrize(
    "text",
    [
        "Qwen2_5_VLForConditionalGeneration", "qwendet.families.qwen2_5_vl", "import QWEN2_5_VL",
        "Qwen2VLImageProcessorPil", "Qwen3VLProcessor", "Qwen3_5ForConditionalGeneration", "Qwen2.5-VL's",
        "Qwen/Qwen3-VL-4B-Instruct", "Qwen3.8", "model_type == 'qwen3_vl'", "<|im_end|>", "'</think>'",
        "151645", "248056", "152064", "patch_size=14", "unit = 28", "1280 * 28 * 28", "28×28", "28 × 28",
    ],
)  # fmt: skip
def test_named_in__finds_what_it_is_for(text: str) -> None:
    assert named_in(text)
