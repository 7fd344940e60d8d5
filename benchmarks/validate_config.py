"""``qwendet validate-config`` on large data: images by header and end mark, and annotations alone.

    python -m benchmarks.validate_config [--images 10000] [--annotations 118000] [--folder DIR]

Files are generated (1,024×1,024 JPEGs with EXIF, each with bytes of its own; boxes as many as COCO's) and
removed again. The whole command is measured: seconds, CPU seconds of all its processes, and their largest
resident memory together (shared pages counted in each) and alone.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.report import parser, report

SIDE_PX = 1024
NUM_BASES = 16  # different pictures; each file has its own comment segment besides
NUM_LABELS = 80
MEAN_BOXES = 7.3  # of an image of COCO's train2017
POLL_SECONDS = 0.02
MIB = 1 << 20


def write_project(folder: Path, num_train: int, *, with_images: bool) -> Path:
    """A config with ``num_train`` training samples and a tenth as many validation samples."""
    draw = random.Random(0)
    (folder / "images").mkdir(parents=True)
    bases = list(_jpegs()) if with_images else []
    for split, count in (("train", num_train - num_train // 10), ("val", num_train // 10)):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for index in range(count):
                name = f"images/{split}_{index:06}.jpg"
                file.write(json.dumps(_record(name, draw)) + "\n")
                if with_images:
                    _write_jpeg(folder / name, bases[index % NUM_BASES], name)
    config = folder / "config.yaml"
    config.write_text("data: {train: train.jsonl, val: val.jsonl}\n", encoding="utf-8")
    return config


def _record(name: str, draw: random.Random) -> dict[str, object]:
    objects = []
    for _ in range(round(draw.expovariate(1 / MEAN_BOXES))):
        x1, y1 = draw.randrange(SIDE_PX - 10), draw.randrange(SIDE_PX - 10)
        x2, y2 = draw.randrange(x1 + 5, SIDE_PX + 1), draw.randrange(y1 + 5, SIDE_PX + 1)
        objects.append({"bbox_2d": [x1, y1, x2, y2], "desc": f"label {draw.randrange(NUM_LABELS)}"})
    return {"images": [name], "objects": objects[:100], "width": SIDE_PX, "height": SIDE_PX}


def _jpegs() -> Iterator[bytes]:
    """Pictures as a camera's: about 200 KB, with an EXIF block."""
    exif = Image.Exif()
    exif[0x0112] = 1
    for seed in range(NUM_BASES):
        noise = np.random.default_rng(seed).integers(0, 256, (SIDE_PX // 4, SIDE_PX // 4, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
        with tempfile.TemporaryFile() as file:
            picture.save(file, "JPEG", quality=75, exif=exif)
            file.seek(0)
            yield file.read()


def _write_jpeg(path: Path, base: bytes, name: str) -> None:
    comment = name.encode()
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
    path.write_bytes(base[:2] + segment + base[2:])


def measure(words: list[str]) -> dict[str, float]:
    """Seconds, CPU seconds and MiB of one command with all its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "qwendet", "--quiet", "validate-config", *words], stdout=subprocess.PIPE
    )
    peaks = {"together": 0, "alone": 0}
    poller = threading.Thread(target=_poll_memory, args=(process.pid, peaks))
    poller.start()
    output = process.communicate()[0].decode()
    seconds = time.perf_counter() - began
    poller.join()
    if process.returncode != 0:
        raise SystemExit(output)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu} | {
        f"mib_{name}": peak / MIB for name, peak in peaks.items()
    }


def _poll_memory(pid: int, peaks: dict[str, int]) -> None:
    try:
        parent = psutil.Process(pid)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            sizes = []
            for process in (parent, *parent.children(recursive=True)):
                try:
                    sizes.append(process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            peaks["together"] = max(peaks["together"], sum(sizes))
            peaks["alone"] = max(peaks["alone"], *sizes)
            time.sleep(POLL_SECONDS)
    except psutil.NoSuchProcess:
        return


def main() -> None:
    """Generate, measure, report."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=10_000, help="samples with images")
    options.add_argument("--annotations", type=int, default=118_000, help="samples without")
    options.add_argument("--folder", type=Path, help="where to generate; a temporary folder if not given")
    chosen = options.parse_args()
    figures: dict[str, float | int | str] = {}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        config = write_project(Path(folder) / "annotations", chosen.annotations, with_images=False)
        for name, value in measure([str(config), "--no-images"]).items():
            figures[f"annotations_{name}"] = value
        config = write_project(Path(folder) / "images", chosen.images, with_images=True)
        for name, value in measure([str(config)]).items():
            figures[f"images_{name}"] = value
    figures |= {"num_annotations": chosen.annotations, "num_images": chosen.images}
    report(figures, chosen.json)


if __name__ == "__main__":
    main()
