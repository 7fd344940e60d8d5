"""Images inside of tar and Parquet files: the pixels of the files, and every mistake named."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwendet.data.images import image_size, open_image
from qwendet.data.samples import Sample
from qwendet.errors import DataError
from qwendet.inference.detections import Detection, Prediction, write_predictions
from qwendet.inference.inputs import Samples, coco_ids, collect_samples

SIZES = ((64, 48), (40, 60), (33, 35))


def picture(number: int, *, turned: bool = False) -> tuple[bytes, Image.Image]:
    """A JPEG, stored on its side if it is turned, and what it shows."""
    noise = np.random.default_rng(number).integers(0, 256, (*SIZES[number][::-1], 3), dtype=np.uint8)
    image, exif = Image.fromarray(noise), Image.Exif()
    exif[0x112] = 6 if turned else 1
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return file.getvalue(), image.transpose(Image.Transpose.ROTATE_270) if turned else image


@pytest.fixture
def pictures() -> list[tuple[bytes, Image.Image]]:
    return [picture(0), picture(1), picture(2, turned=True)]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_table(path: Path, columns: dict[str, list[Any]], rows_of_a_group: int = 2) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'qwendet[parquet]'")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_of_a_group)
    return path


def require_shown(samples: Samples, pictures: list[tuple[bytes, Image.Image]]) -> None:
    """In any order, since a window is sorted by length."""
    for at in (2, 0, 1):
        turn, (_, shown) = samples[at].student, pictures[at]
        assert image_size(turn.image, turn.root, "x") == shown.size
        assert (np.asarray(open_image(turn.image, turn.root, "x")) == np.asarray(shown)).all()


def test_tar__gives_the_pixels_of_its_members(
    pictures: list[tuple[bytes, Image.Image]], tmp_path: Path
) -> None:
    members: dict[str, bytes] = {"./._0000.png": b"of a Mac", "a/@eaDir/0000.png": b"of a Synology"}
    for at, (content, _) in enumerate(pictures):
        members |= {f"./{at:04}.png": content, f"./{at:04}.json": b"{}"}
    samples = collect_samples([write_tar(tmp_path / "a-000.tar", members)])
    assert [sample.student.image for sample in samples] == [f"a-000.tar/000{at}.png" for at in range(3)]
    require_shown(samples, pictures)


@pytest.mark.parametrize("kind", ["files", "bytes", "without names"])
def test_parquet__gives_the_pixels_of_its_rows(
    kind: str, pictures: list[tuple[bytes, Image.Image]], tmp_path: Path
) -> None:
    cells: list[Any] = [content for content, _ in pictures]
    if kind != "bytes":
        names = [f"{at}.png" if kind == "files" else None for at in range(3)]
        cells = [{"bytes": cell, "path": name} for cell, name in zip(cells, names, strict=True)]
    file = write_table(tmp_path / "a.parquet", {"label": [1, 2, 3], "image": cells})
    samples = collect_samples([file])
    named = [f"a.parquet/{at}{f'/{at}.png' * (kind == 'files')}" for at in range(3)]
    assert [sample.student.image for sample in samples] == named
    require_shown(samples, pictures)


def test_parquet__of_paths_names_files_beside_it(
    pictures: list[tuple[bytes, Image.Image]], tmp_path: Path
) -> None:
    for at, (content, _) in enumerate(pictures):
        (tmp_path / f"{at}.png").write_bytes(content)
    samples = collect_samples([write_table(tmp_path / "a.parquet", {"path": ["0.png", "1.png", "2.png"]})])
    assert [sample.student.image for sample in samples] == ["0.png", "1.png", "2.png"]
    require_shown(samples, pictures)


def test_path__of_one_image_in_a_shard(tmp_path: Path, refusal: Callable[..., DataError]) -> None:
    """As predictions name it."""
    content, shown = picture(0)
    tar = write_tar(tmp_path / "a.tar", {"0.png": content})
    table = write_table(tmp_path / "a.parquet", {"image": [content]})
    for path in (tar / "0.png", table / "0" / "x.png"):
        (sample,) = collect_samples([path])
        turn = sample.student
        assert open_image(turn.image, turn.root, sample.where).tobytes() == shown.tobytes()
    (problem,) = refusal(collect_samples, [tar / "1.png"]).problems
    assert (problem.where, problem.fix) == (str(tar / "1.png"), "correct the path")


def test_cut_shard__is_named(tmp_path: Path, refusal: Callable[..., DataError]) -> None:
    file = write_tar(tmp_path / "a.tar", {"0.png": picture(0)[0], "1.png": picture(1)[0]})
    content = file.read_bytes()
    for length in (len(picture(0)[0]) // 2, 200):
        file.write_bytes(content[:length])
        (problem,) = refusal(collect_samples, [file]).problems
        assert problem.where == str(file)
        assert problem.what.startswith("the tar cannot be read")
    table = write_table(tmp_path / "a.parquet", {"image": [picture(0)[0]]})
    table.write_bytes(table.read_bytes()[:-9])
    (problem,) = refusal(collect_samples, [table]).problems
    assert problem.what.startswith("expected a whole Parquet file")


def test_shard__without_images(tmp_path: Path, refusal: Callable[..., DataError]) -> None:
    (problem,) = refusal(collect_samples, [write_tar(tmp_path / "a.tar", {"0.txt": b"x"})]).problems
    assert problem.what == "the shard holds no images, but '0.txt'"
    file = write_table(tmp_path / "a.parquet", {"text": ["a"], "image": [3]})
    (problem,) = refusal(collect_samples, [file]).problems
    assert problem.what.endswith("of files, bytes or paths, got text (string), image (int64)")
    assert problem.fix == "rename the column of the images to image"


def test_shard__given_twice_is_refused(tmp_path: Path, refusal: Callable[..., DataError]) -> None:
    file = write_tar(tmp_path / "a.tar", {"0.png": picture(0)[0]})
    (tmp_path / "link.tar").symlink_to(file)
    (problem,) = refusal(collect_samples, [file, tmp_path / "link.tar"]).problems
    assert (problem.what, problem.where) == ("this is given twice", str(file))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO file whose ids are no counts."""
    folder = tmp_path / "cells"
    (folder / "images").mkdir(parents=True)
    for at in range(2):
        (folder / "images" / f"{at}.png").write_bytes(picture(at)[0])
    images = [
        {"id": 70 + at, "file_name": f"{at}.png", "width": SIZES[at][0], "height": SIZES[at][1]}
        for at in range(2)
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 9, "name": "cell"}]}
    (folder / "val.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "val.json"


FOUND = (
    Detection((1.5, 2.0, 11.5, 22.25), "cell", 0.75, "head"),
    Detection((0, 0, 5, 5), "dot", 0.5, "text"),
)


def predictions(samples: Samples | list[Sample]) -> list[Prediction]:
    return [
        Prediction(sample.student.image, 64, 48, FOUND[: at + 1], at) for at, sample in enumerate(samples)
    ]


def test_coco_results__have_the_ids_of_the_file_that_is_asked_about(coco: Path, tmp_path: Path) -> None:
    samples = collect_samples([coco])
    assert [sample.student.image for sample in samples] == ["images/0.png", "images/1.png"]
    write_predictions(predictions(samples), tmp_path / "out.json", ids=coco_ids([coco], ["x"]))
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    box = {"category_id": 9, "bbox": [1.5, 2.0, 10.0, 20.25], "score": 0.75, "source": "head"}
    assert found == [{"image_id": 70, **box}, {"image_id": 71, **box}]


def test_coco_results__of_other_inputs_are_counted_and_named(coco: Path, tmp_path: Path) -> None:
    samples = collect_samples([coco.parent / "images"])
    ids = coco_ids([coco.parent / "images"], ["dot", "cell"])
    write_predictions(predictions(samples), tmp_path / "out.json", ids=ids)
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    told = [(item["image_id"], item["file_name"], item["category_id"]) for item in found]
    assert told == [(0, "0.png", 2), (1, "1.png", 2), (1, "1.png", 1)]
    write_predictions([], tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text(encoding="utf-8")) == []


def test_parquet_output__holds_what_the_lines_hold(coco: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'qwendet[parquet]'")
    from pyarrow import parquet

    found = predictions(collect_samples([coco]))
    write_predictions(found, tmp_path / "out.parquet", {"trained_by": "unknown"})
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.to_pylist() == [json.loads(prediction.to_json()) for prediction in found]
    assert json.loads(table.schema.metadata[b"model"]) == {"trained_by": "unknown"}
