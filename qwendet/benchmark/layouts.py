"""Published benchmarks as they are downloaded: which annotations of each set are measured, which trained on.

    odinw13, odinw35  DIR/SET/{train,valid,test}/annotations_without_background.json
    rf100vl           DIR/NAME/{train,test}/_annotations.coco.json
    coco              DIR/annotations/instances_{train,val}2017.json, DIR/{train,val}2017/
    lvis              DIR/annotations/lvis_v1_{train,val,minival}.json, DIR/{train,val}2017/
    refcoco           DIR/{refcoco,refcoco+,refcocog}/instances.json, refs(unc|umd).json, DIR/images/

Folders of ODinW are GLIP's (Li et al. 2022). Its zero-shot configs measure ``valid`` (of large sets a part of
it), as mmdetection's configs of Grounding DINO do; what was fine-tuned is measured on ``test``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from qwendet.errors import DataError
from qwendet.files import list_folder

Benchmark = Literal["odinw13", "odinw35", "rf100vl", "coco", "lvis", "refcoco"]
REFERRED = {
    "refcoco": ("unc", "val", "testA", "testB"),
    "refcoco+": ("unc", "val", "testA", "testB"),
    "refcocog": ("umd", "val", "test"),
}
"""Who divided the references, and the splits that are measured."""


def _places(*places: str) -> dict[str, str]:
    """Folders by the name of the set: its first part, with the second where there are several of it."""
    names = [place.replace("-", "_").split("/") for place in places]
    return {
        "_".join(name[: 2 if name[0] in _DIVIDED else 1]): place
        for name, place in zip(names, places, strict=True)
    }


_DIVIDED = ("AerialMaritimeDrone", "EgoHands", "OxfordPets")
_ODINW13 = _places(
    "AerialMaritimeDrone/large", "Aquarium/Aquarium Combined.v2-raw-1024.coco", "CottontailRabbits",
    "EgoHands/generic", "NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco", "Packages/Raw",
    "PascalVOC", "pistols/export", "pothole", "Raccoon/Raccoon.v2-raw.coco", "ShellfishOpenImages/raw",
    "thermalDogsAndPeople", "VehiclesOpenImages/416x416",
)  # fmt: skip
_ODINW35 = _ODINW13 | _places(
    "AerialMaritimeDrone/tiled", "AmericanSignLanguageLetters/American Sign Language Letters.v1-v1.coco",
    "BCCD/BCCD.v3-raw.coco", "boggleBoards/416x416AutoOrient/export", "brackishUnderwater/960x540",
    "ChessPieces/Chess Pieces.v23-raw.coco", "dice/mediumColor/export",
    "DroneControl/Drone Control.v3-raw.coco", "EgoHands/specific", "HardHatWorkers/raw", "MaskWearing/raw",
    "MountainDewCommercial", "openPoetryVision/512x512", "OxfordPets/by-breed", "OxfordPets/by-species",
    "PKLot/640", "plantdoc/416x416", "selfdrivingCar/fixedLarge/export", "ThermalCheetah", "UnoCards/raw",
    "websiteScreenshots", "WildfireSmoke",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """COCO annotations and the folder that their file names start from; or references, and their split."""

    annotations: Path
    images: Path
    split: str | None = None


@dataclass(frozen=True)
class BenchmarkSet:
    """One data set of a benchmark.

    Attributes:
        name: as tables name it.
        project: folder of the model that is trained for it; sets may share it.
        measured: what is measured.
        train: what may be trained on.
    """

    name: str
    project: str
    measured: Part
    train: Part


def sets_of(benchmark: Benchmark, folder: Path, *, fine_tuned: bool = False) -> list[BenchmarkSet]:
    """The sets of a benchmark, by name; of a model that is fine-tuned on each, or not.

    Raises:
        DataError: naming every annotation file of the layout that is absent.
    """
    layouts: dict[Benchmark, Callable[[Path], list[BenchmarkSet]]] = {
        "odinw13": partial(_odinw, _ODINW13, fine_tuned),
        "odinw35": partial(_odinw, _ODINW35, fine_tuned),
        "rf100vl": _rf100vl,
        "coco": _coco,
        "lvis": _lvis,
        "refcoco": _refcoco,
    }
    found = sorted(layouts[benchmark](folder), key=lambda item: item.name)
    absent = [str(item.measured.annotations) for item in found if not item.measured.annotations.is_file()]
    if absent or not found:
        some = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
        lacks = (
            f"{len(absent)} of its {len(found)} sets lack annotations: {some}" if absent else "no set found"
        )
        raise DataError(
            f"not the layout of {benchmark}: {lacks}", str(folder),
            "give the folder that the benchmark was downloaded to; docs/benchmarks.md shows the layout",
        )  # fmt: skip
    return found


def _odinw(places: Mapping[str, str], fine_tuned: bool, folder: Path) -> list[BenchmarkSet]:
    return [
        BenchmarkSet(
            name,
            name,
            _odinw_part(folder / place, "test" if fine_tuned and name != "PascalVOC" else "valid"),
            _odinw_part(folder / place, "train"),
        )
        for name, place in places.items()
    ]


def _odinw_part(folder: Path, split: str) -> Part:
    file = "annotations_without_background.json"
    if folder.name == "export":  # all splits share the folder of images
        return Part(folder / f"{split.removesuffix('id')}_{file}", folder)
    return Part(folder / split / file, folder / split)


def _rf100vl(folder: Path) -> list[BenchmarkSet]:
    file = "_annotations.coco.json"
    return [
        BenchmarkSet(
            child.name,
            child.name,
            *(Part(child / split / file, child / split) for split in ("test", "train")),
        )
        for child in list_folder(folder)
        if any((child / split / file).is_file() for split in ("test", "train"))
    ]


def _coco(folder: Path) -> list[BenchmarkSet]:
    parts = (
        Part(folder / "annotations" / f"instances_{split}2017.json", folder / f"{split}2017")
        for split in ("val", "train")
    )
    return [BenchmarkSet("coco", "coco", *parts)]


def _lvis(folder: Path) -> list[BenchmarkSet]:
    home = folder / "annotations" if (folder / "annotations").is_dir() else folder
    names = ("lvis_v1_val", "lvis_v1_minival", "lvis_v1_minival_inserted_image_name")
    there = [name for name in names if (home / f"{name}.json").is_file()]
    train = Part(home / "lvis_v1_train.json", folder)
    return [
        BenchmarkSet(name, "lvis", Part(home / f"{name}.json", folder), train) for name in there or names[:1]
    ]


def _refcoco(folder: Path) -> list[BenchmarkSet]:
    places = ("images/mscoco/images/train2014", "images/train2014", "train2014", "images")
    images = next((folder / place for place in places if (folder / place).is_dir()), folder)
    found = []
    for name, (by, *splits) in REFERRED.items():
        refs = folder / name / f"refs({by}).json"
        train = Part(refs, images, "train")
        found += [BenchmarkSet(f"{name}_{split}", name, Part(refs, images, split), train) for split in splits]
    return found
