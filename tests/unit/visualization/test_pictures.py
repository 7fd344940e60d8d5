"""Pictures: captions that can be read, whatever their script and whichever fonts are installed."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image, ImageFont

from qwendet.visualization import fonts
from qwendet.visualization.fonts import font_for, installed_fonts, lacking
from qwendet.visualization.pictures import colour_of, draw_boxes


def test_font_for__pillows_own_font_draws_latin() -> None:
    own = ImageFont.load_default(size=20)
    assert lacking(own, "red circle 0.87 (a-z)") == frozenset()
    assert font_for("red circle 0.87", 20)[1] == "red circle 0.87"
    assert lacking(own, "圆 a") == {"圆"}


def test_font_for__without_any_font_characters_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "installed_fonts", lambda characters: ())
    assert font_for("圆 cat 0.50", 20)[1] == "\\u5706 cat 0.50"
    assert font_for("😀", 20)[1] == "\\U0001f600"


@pytest.mark.skipif(shutil.which("fc-list") is None, reason="fontconfig is not installed")
@pytest.mark.parametrize("text", ["圆 0.50", "Круг 0.50", "κύκλος"])
def test_font_for__an_installed_font_that_has_every_character_is_taken(text: str) -> None:
    own = lacking(ImageFont.load_default(size=20), text)
    if not installed_fonts(own):
        pytest.skip(f"no installed font has {''.join(sorted(own))}")
    font, drawn = font_for(text, 20)
    assert drawn == text
    assert lacking(font, text) == frozenset()


def test_draw_boxes__in_the_labels_colour_with_a_caption_of_any_script() -> None:
    image = Image.new("RGB", (448, 448))
    for label, scores in (("red circle", [0.5]), ("圆圈", [0.5]), ("red circle", None)):
        drawn = np.asarray(draw_boxes(image, [(100, 100, 200, 300)], [label], scores))
        assert tuple(drawn[200, 100]) == colour_of(label)
        assert drawn[:100].any(), "the caption stands above the box"
        assert drawn.shape == (448, 448, 3)
