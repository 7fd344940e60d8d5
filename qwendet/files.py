"""Files and folders: written whole or not at all, and where they cannot be read, said in plain words."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from qwendet.errors import ConfigError, DataError

logger = logging.getLogger("qwendet")

URL = re.compile(r"([a-z][a-z0-9+]+):/+(.+)", re.DOTALL)
"""Protocol and rest of ``s3://bucket/a.jsonl``, whose second slash :class:`pathlib.Path` takes away."""
REPLACED = ".replaced"
"""How the name ends that a folder has while another one takes its place."""


@contextmanager
def atomic_folder(target: Path, *, replace: bool = False, sync: bool = True) -> Iterator[Path]:
    """Write a folder beside its place, sync it to disk and rename it.

    Args:
        target: the folder to be; must be absent or empty when the block ends, unless it is to be replaced.
        replace: put it in place of a folder of the same name.
        sync: as of :func:`publish_folder`.

    Yields:
        An empty folder to write to. It is removed if the block raises, with the folders made for it.
    """
    staging = target.with_name(f".{target.name}.writing-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    with _parents_of(staging):
        staging.mkdir()
        try:
            yield staging
            publish_folder(staging, target, replace=replace, sync=sync)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _parents_of(target: Path) -> Iterator[None]:
    """Make the folders that something is to be in; those that are empty when the block ends go again."""
    made = [path for path in target.absolute().parents if not path.exists()]
    if made:
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def publish_folder(staging: Path, target: Path, *, replace: bool, sync: bool = True) -> None:
    """Give a finished folder its final name, another folder's if ``replace``.

    With ``sync`` it is synced to disk first, which takes minutes for a hundred thousand small files.

    There is no portable way to put a folder in another's place in one step. A process that dies between the
    two renames leaves the earlier folder under its second name, where :func:`find_folder` finds it.
    """
    for path in [*staging.rglob("*"), staging] if sync else []:
        _sync(path)
    replaced = _second_name(target)
    if find_folder(target):
        shutil.rmtree(replaced, ignore_errors=True)
        if replace:
            target.rename(replaced)
    try:
        staging.rename(target)
    finally:
        find_folder(target)
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def find_folder(target: Path) -> bool:
    """Whether a folder is there; one that was lost while it was being replaced is put back first."""
    replaced = _second_name(target)
    if target.exists() or not replaced.is_dir():
        return target.is_dir()
    try:
        replaced.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process of the launcher was first
            fix = shlex.join(["mv", str(replaced), str(target)])
            what = f"it lies in {replaced} since its replacement was cut off ({error.strerror})"
            raise DataError(what, str(target), fix) from error
    else:
        logger.warning("%s is put back as it was: the process that was replacing it was cut off", target)
    return True


def put_back_lost(parent: Path) -> None:
    """Put back every folder in another one that :func:`find_folder` would."""
    for replaced in parent.glob(f".*{REPLACED}"):
        find_folder(parent / replaced.name.removeprefix(".").removesuffix(REPLACED))


def _second_name(target: Path) -> Path:
    return target.parent / f".{target.name}{REPLACED}"


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Write a file beside its place, sync it to disk and rename it."""
    staging = target.with_name(f".{target.name}.writing-{os.getpid()}")
    try:
        with _parents_of(staging):
            try:
                yield staging
                _sync(staging)
                staging.replace(target)
            finally:
                with suppress(OSError):
                    staging.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write ({error.strerror})", str(target), "choose another place") from error


@contextmanager
def tell_unreadable(file: Path | None = None) -> Iterator[None]:
    """What may not be read, or cannot be, becomes an error that names it: ``file``, where it does not say."""
    try:
        yield
    except OSError as error:
        path, fix = Path(error.filename or file or ""), ""
        if isinstance(error, PermissionError):
            closed = (place for place in reversed(path.parents) if not os.access(place, os.R_OK | os.X_OK))
            path = next(closed, path)
            fix = f"chmod -R u+rX {shlex.quote(str(path))}"
        raise DataError(f"it cannot be read ({error.strerror})", str(path), fix) from error


def partial_of(target: Path) -> Path:
    """Where parts of a file are kept until all of it can be written.

    Example:
        >>> partial_of(Path("run/found.jsonl")).name
        'found.jsonl.part'
    """
    return target.with_name(f"{target.name}.part")


def require_place(target: Path, where: str, *, is_folder: bool = False) -> None:
    """Find out before the work, and not after it, that what it gives cannot be written.

    ``where`` is what the user named the file or folder by, such as ``--output``.
    """
    if target.is_dir() and not is_folder:
        raise ConfigError(f"expected a file, got the folder {target}", where, "name a file in it")
    if is_folder and target.exists() and not target.is_dir():
        raise ConfigError(f"expected a folder, got the file {target}", where, "give another place")
    place = target.absolute() if is_folder else target.absolute().parent
    nearest = next(path for path in (place, *place.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        what = f"cannot write to {target} ({nearest}: {error.strerror})"
        raise ConfigError(what, where, "choose another place") from error


def is_url(path: str | Path) -> bool:
    """Whether a path has a protocol, such as ``hf://``, ``s3://`` or ``memory://``.

    Example:
        >>> is_url("hf://datasets/a/b/train.parquet"), is_url(Path("s3://a/b")), is_url("/a/b.jsonl")
        (True, True, False)
    """
    return URL.fullmatch(str(path)) is not None


def list_folder(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, but for what :func:`is_hidden`; nothing if it is absent."""
    return list(_children(folder))


def is_hidden(name: str) -> bool:
    """Whether a name is none of the user's: ``._a.jpg`` of a Mac, Jupyter's copies, a Synology's thumbnails.

    Example:
        >>> [is_hidden(name) for name in ("._a.jpg", ".ipynb_checkpoints", "@eaDir", "a.jpg")]
        [True, True, True, False]
    """
    return name.startswith((".", "@eaDir"))


def _children(folder: Path) -> Iterator[Path]:
    with tell_unreadable(folder):
        names = sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208  # paths take more memory
    return (folder / name for name in names if not is_hidden(name))


def files_below(folder: Path, suffixes: Set[str]) -> Iterator[Path]:
    """Files with one of these endings (lower case, with their dot) in a folder and below it, its own first.

    Links to folders elsewhere are followed; those that lead to what is passed anyway, or back, are not.
    """
    yield from _files_below(folder, suffixes, [folder.resolve()])


def _files_below(folder: Path, suffixes: Set[str], homes: list[Path]) -> Iterator[Path]:
    inner = []
    for child in _children(folder):
        if child.is_dir():
            inner.append(child)
        elif child.suffix.lower() in suffixes:
            yield child
    for child in inner:
        real = child.resolve() if child.is_symlink() else None
        if real is None:
            yield from _files_below(child, suffixes, homes)
        elif not any(real.is_relative_to(home) or home.is_relative_to(real) for home in homes):
            homes.append(real)
            yield from _files_below(child, suffixes, homes)


def read_text(file: Path) -> str:
    """A text file that others wrote, with or without a byte order mark."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot read the file as UTF-8 text ({error})"
        raise DataError(what, str(file), "save it as UTF-8, and see that it may be read") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
