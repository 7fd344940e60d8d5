"""Labels that name a direction, which a flipped or turned image no longer shows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from qwendet.config.augment_steps import AugmentStep
from qwendet.config.schema import DataConfig
from qwendet.errors import Problem

SIDEWAYS = """
    left right leftmost rightmost leftward rightward leftwards rightwards east west eastern western
    eastbound westbound clockwise counterclockwise anticlockwise starboard links rechts linke rechte
    linker rechter linkes rechtes ost osten westen gauche droite droit est ouest izquierda izquierdo
    derecha derecho este oeste sinistra sinistro destra destro ovest esquerda esquerdo direita direito
    leste oost lewo lewy lewa prawo prawy prawa левый левая лево правый правая право восток запад sol
    sağ doğu batı vänster höger venstre højre høyre vasen oikea vlevo vpravo levý pravý kiri kanan trái
    phải ซ้าย ขวา يسار يمين شمال ימין שמאל बाएं दाएं बायां दायां
"""
UPRIGHT = """
    up down upper lower top bottom upward downward upwards downwards north south northern southern
    northbound southbound oben unten nord norden süd süden haut bas sud arriba abajo norte sur giù alto
    basso cima baixo sul boven onder noord zuid góra dół верх низ север юг yukarı aşağı kuzey güney atas
    bawah trên dưới أعلى أسفل ऊपर नीचे
"""
EAST_AND_WEST = ("向东", "向西", "东向", "西向", "朝东", "朝西", "東向", "向東", "동쪽", "서쪽", "왼", "오른")
SIDEWAYS_SIGNS = (*"左右←→⇐⇒⟵⟶⬅➡◀▶◁▷↔⇆⇄👈👉☜☞↖↗↘↙⬉⬈⬊⬋", *EAST_AND_WEST)
UPRIGHT_SIGNS = (*"上下↑↓⇑⇓⬆⬇▲▼△▽↕👆👇", "向南", "向北", "朝南", "朝北", "북쪽", "남쪽")


def names_sideways(label: str) -> bool:
    """Whether a label names left or right, east or west, or a sense of turning.

    Example:
        >>> names_sideways("Left hand"), names_sideways("flecha izquierda"), names_sideways("copyright sign")
        (True, True, False)
    """
    return _names(label, SIDEWAYS, SIDEWAYS_SIGNS)


def names_a_direction(label: str) -> bool:
    """The same, and whether it names up or down, north or south.

    Example:
        >>> names_a_direction("上矢印"), names_a_direction("↘"), names_a_direction("red cell")
        (True, True, False)
    """
    return names_sideways(label) or _names(label, UPRIGHT, UPRIGHT_SIGNS)


def _names(label: str, words: str, signs: Collection[str]) -> bool:
    parts = re.split(r"[\s_.,;:/()-]+", label.casefold())
    return not set(words.split()).isdisjoint(parts) or any(sign in label for sign in signs)


def direction_problems(
    settings: DataConfig, steps: Collection[AugmentStep], labels: Collection[str]
) -> Iterator[Problem]:
    """Labels that a flip or a turn would make untrue, and ``data.augment_flips_labels`` that are none."""
    flipped, names = settings.flipped_labels(), {step.name for step in steps}
    for label in sorted(set(flipped) - set(labels)):
        what = f"the label {label!r} is not in the label set"
        yield Problem(what, "data.augment_flips_labels", f"known: {', '.join(labels)}")
    for label in labels:
        meant = flipped.get(label) != label  # one that stays itself was said to name no direction
        if "horizontal_flip" in names and names_sideways(label) and label not in flipped:
            yield Problem(
                f"a flipped image no longer shows {label!r}",
                "data.augment",
                f"say what it becomes: data.augment_flips_labels: {{{label}: OTHER LABEL}}, or itself if it"
                " names no direction; or list steps without horizontal_flip",
            )
        for step in sorted(names & {"vertical_flip", "quarter_turn"}):
            if meant and names_a_direction(label):
                yield Problem(
                    f"after {step} an image no longer shows {label!r}",
                    "data.augment",
                    f"list steps without {step}; or, if it names no direction, write"
                    f" data.augment_flips_labels: {{{label}: {label}}}",
                )
