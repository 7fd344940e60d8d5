"""Files of object stores and of the Hugging Face hub, fetched once into a folder that mirrors them.

"s3://bucket/cells/train.jsonl" ─► <cache>/qwendet/remote/s3/bucket/cells/train.jsonl
an image that it names, absent there ─► fetched from s3://bucket/cells/ when it is asked for
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwendet.errors import DataError, EnvironmentLacksError
from qwendet.files import URL
from qwendet.progress import track

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


def fetch(path: str | Path, suffixes: frozenset[str]) -> list[Path]:
    """The files that a URL names, a file, a pattern or a folder, on this machine and as they are there now.

    Raises:
        DataError: if there is none, or the store cannot be reached.
        EnvironmentLacksError: without the library of its protocol.
    """
    path = "{}://{}".format(*_parts(path))  # as it was given: pathlib takes a slash away
    with _fetching(path):
        system, inner = _store(path)
        if "*" in inner:
            names = system.glob(inner)
        else:
            names = system.find(inner) if system.isdir(inner) else [inner]
            names = [name for name in names if name == inner or Path(name).suffix in suffixes]
        if not names:
            raise DataError(
                "there is no such file, nor one of samples below it", str(path), "correct the path"
            )
        with track(f"fetching {Path(inner).name}", len(names)) as advance:
            found = []
            for number, name in enumerate(sorted(names), start=1):
                home = _home() / _parts(path)[0]
                target = Path(os.path.normpath(home / name.lstrip("/")))
                if not target.is_relative_to(home):
                    what = f"the store names the file {name!r}, which leaves the folder of its copies"
                    raise DataError(what, str(path), "give the path of another file")
                found.append(_fetched(system, name, target))
                advance(number, Path(name).name)
        return found


def fetch_absent(path: Path) -> bool:
    """Fetch a file that the mirror lacks, if ``path`` is in it and there is such a file."""
    home = _home().resolve()
    if not path.is_relative_to(home):
        return False
    protocol, *inner = path.relative_to(home).parts
    url = f"{protocol}://{'/'.join(inner)}"
    with _fetching(url):
        system, name = _store(url)
        if not system.isfile(name):
            return False
        _fetched(system, name, path)
        return True


def _home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwendet" / "remote"


def _parts(path: str | Path) -> tuple[str, str]:
    """Protocol and rest."""
    found = URL.fullmatch(str(path))
    assert found is not None
    return found[1], found[2]


def _store(path: str | Path) -> tuple[Any, str]:
    import fsspec

    protocol, rest = _parts(path)
    system, name = fsspec.url_to_fs(f"{protocol}://{'/' if protocol == 'file' else ''}{rest}")
    return system, str(name)


def _fetched(system: Any, name: str, target: Path) -> Path:
    """Fetch a file unless it is there already; processes that ask for the same one wait for the first."""
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    mark, staging = (target.with_name(f".{target.name}.{kind}") for kind in ("version", "fetching"))
    version = str(system.ukey(name))
    with FileLock(target.with_name(f".{target.name}.lock")):
        if not (target.is_file() and mark.is_file() and mark.read_text() == version):
            mark.unlink(missing_ok=True)
            system.get_file(name, str(staging))
            staging.replace(target)
            mark.write_text(version)
    return target


@contextmanager
def _fetching(path: str | Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        extra = EXTRAS.get(_parts(path)[0])
        fix = f"pip install 'qwendet[{extra}]'" if extra else f"install what fsspec needs: {error}"
        raise EnvironmentLacksError(f"a library is lacking ({error})", str(path), fix) from error
    except FileNotFoundError as error:
        raise DataError("there is no such file", str(path), "correct the path") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"it cannot be fetched ({error})", str(path), "correct the path, or try again"
        ) from error
