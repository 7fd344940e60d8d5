"""Annotation files of COCO's size converted: seconds and memory, every format out.

    python -m benchmarks.convert [--images 118000 --boxes 860000]

Writes an ``instances_train2017.json`` of that many images and boxes, each with a polygon of 22 points, in
COCO's own order of keys (449 MB), and no image. ``qwendet data convert --images reference`` then runs in a
process of its own for each format; the JSONL is converted back to COCO as well.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import parser, report

LABELS = {1: "person", 2: "bicycle", 3: "car", 5: "airplane", 90: "toothbrush"}
WIDTH, HEIGHT = 640, 480


def write_coco(path: Path, num_images: int, num_boxes: int) -> None:
    """Write the annotation file, element by element."""
    draw = random.Random(0)
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {}, "licenses": [], "images": [')
        for number in range(num_images):
            name = f"{number:012d}.jpg"
            entry = {
                "license": 1,
                "file_name": name,
                "coco_url": f"http://images.cocodataset.org/train2017/{name}",
                "height": HEIGHT,
                "width": WIDTH,
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
                "id": 3 * number,
            }
            file.write((", " if number else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for number in range(num_boxes):
            file.write((", " if number else "") + json.dumps(annotation(draw, number, num_images)))
        categories = [{"supercategory": "any", "id": id, "name": name} for id, name in LABELS.items()]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def annotation(draw: random.Random, number: int, num_images: int) -> dict[str, object]:
    """A box of a random image, with a polygon inside it."""
    x, y = round(draw.uniform(0, 500), 2), round(draw.uniform(0, 350), 2)
    width, height = round(draw.uniform(2, 130), 2), round(draw.uniform(2, 120), 2)
    points = ((x + draw.random() * width, y + draw.random() * height) for _ in range(22))
    return {
        "segmentation": [[round(value, 2) for point in points for value in point]],
        "area": round(width * height, 2),
        "iscrowd": int(draw.random() < 0.01),
        "image_id": 3 * draw.randrange(num_images),
        "bbox": [x, y, width, height],
        "category_id": draw.choice(list(LABELS)),
        "id": number,
    }


def convert(source: Path, target: Path, *options: str) -> dict[str, float]:
    """Convert in a process of its own; seconds of wall clock and processor, megabytes at most."""
    command = [sys.executable, "-m", "qwendet", "--quiet", "data", "convert", str(source), str(target)]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--images", "reference", *options], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"the conversion ended with {status}"
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "megabytes": usage.ru_maxrss / 1024,
    }


def main() -> None:
    """Generate, convert to each format, report."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=118_000)
    arguments.add_argument("--boxes", type=int, default=860_000)
    options = arguments.parse_args()
    figures: dict[str, float | int | str] = {"images": options.images, "boxes": options.boxes}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        annotations = folder / "source" / "annotations" / "instances_train2017.json"
        write_coco(annotations, options.images, options.boxes)
        figures["annotation_megabytes"] = annotations.stat().st_size / 1e6
        for target in ("jsonl", "coco", "yolo", "voc"):
            found = convert(folder / "source", folder / target, "--to", target)
            figures |= {f"coco_to_{target}_{name}": value for name, value in found.items()}
            if target != "jsonl":
                shutil.rmtree(folder / target)
        found = convert(folder / "jsonl", folder / "back", "--to", "coco")
        figures |= {f"jsonl_to_coco_{name}": value for name, value in found.items()}
    report(figures, options.json)


if __name__ == "__main__":
    main()
