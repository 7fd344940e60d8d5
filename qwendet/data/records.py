"""One annotated image, whatever format it came from, and what its reader mended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwendet.data.samples import Sample

FindingKind = Literal["zero_area", "clipped", "renamed", "resized"]

SPLITS = ("train", "val", "test")
WHOLE = "all"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a reader mended or left out.

    Attributes:
        kind: the field of :class:`ConversionReport` that it is listed in.
        note: the annotation file, the object where it is about one, and what was found, in words.
    """

    kind: FindingKind
    note: str


@dataclass(frozen=True, slots=True)
class Record:
    """One annotated image, whatever format it came from.

    Attributes:
        split: ``train``, ``val``, ``test``, or ``all`` where the data set has no splits.
        sample: its image is relative to the data set's folder; width and height are those displayed.
        findings: what was mended in it.
    """

    split: str
    sample: Sample
    findings: tuple[Finding, ...] = ()
