"""Pictures: captions that can be read, whatever their script and whichever fonts are installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFont

from qwendet.visualization import fonts
from qwendet.visualization.charts import save_bars, save_histogram
from qwendet.visualization.fonts import families_for, font_for, fonts_with
from qwendet.visualization.pictures import colour_of, draw_boxes


def test_font_for__pillows_own_font_draws_latin() -> None:
    font, drawn = font_for("red circle 0.87", 20)
    assert drawn == "red circle 0.87"
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert font.getname() != ("DejaVu Sans", "Book")


@pytest.mark.parametrize("text", ["Круг 0.50", "κύκλος", "é"])
def test_font_for__a_font_that_has_every_character_is_taken(text: str) -> None:
    font, drawn = font_for(text, 20)
    assert drawn == text
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert font.getname()[0] == "DejaVu Sans"  # matplotlib brings it


def test_font_for__without_any_font_characters_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "fonts_with", lambda characters: ())
    assert font_for("圆 cat 0.50", 20)[1] == "\\u5706 cat 0.50"
    assert font_for("😀", 20)[1] == "\\U0001f600"


def test_fonts_with__what_nobody_draws() -> None:
    assert fonts_with(frozenset("\U0010fffd")) == ()


def test_families_for__name_a_font_for_each_character_or_escape_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cjk = SimpleNamespace(name="Some CJK")
    have = {frozenset("圆"): (cjk,), frozenset("😀"): ()}
    monkeypatch.setattr(
        fonts, "fonts_with", lambda wanted: have.get(wanted, (SimpleNamespace(name="DejaVu Sans"),))
    )
    assert families_for(["圆 a", "a😀"]) == (["DejaVu Sans", "Some CJK"], ["圆 a", "a\\U0001f600"])


def test_save_bars__of_dollar_signs_and_no_bars(tmp_path: Path) -> None:
    save_bars(tmp_path / "bars.png", "Prices", ["$5 and $", "\\frac"], [3, 0])
    save_histogram(tmp_path / "none.png", "Nothing", [], [])
    for name in ("bars", "none"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width == 720


def test_draw_boxes__in_the_labels_colour_with_a_caption_of_any_script() -> None:
    image = Image.new("RGB", (448, 448))
    for label, scores in (("red circle", [0.5]), ("圆圈", [0.5]), ("red circle", None)):
        drawn = np.asarray(draw_boxes(image, [(100, 100, 200, 300)], [label], scores))
        assert tuple(drawn[200, 100]) == colour_of(label)
        assert drawn[:100].any(), "the caption stands above the box"
        assert drawn.shape == (448, 448, 3)
