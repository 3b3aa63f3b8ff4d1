"""What lies in a bundle's folder: plain files with their digests, before anything of them is read by a framework.

A bundle's digest is the SHA-256 of a list: each file's path and the SHA-256 of
its content.  The list lies beside the files (:data:`LIST`).  Whoever knows the
digest can so trust the list after reading a few kilobytes, and need not read
files whose content it has in memory already.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from factory.errors import UntrustedBundle

LIST = "digests.txt"
"""File with the digests of all others; it is not one of them."""


@dataclass(frozen=True)
class Contents:
    """The files of a folder.

    Attributes:
        folder: Where they lie.
        files: SHA-256 of their content by relative path, sorted.
        read: Whether these are of what was read; else they are what the list says.
    """

    folder: Path
    files: Mapping[str, str]
    read: bool

    @classmethod
    def of(cls, folder: Path, *, digest: str | None = None) -> Contents:
        """Return what a folder holds.

        Args:
            folder: The bundle's folder.
            digest: Of the list that is taken instead of reading all files; where the list is another one, or none, or
                names other parts, they are read.

        Raises:
            UntrustedBundle: there is no such folder, or it holds a link or something else that is not a plain file.
        """
        stated = _stated(folder / LIST, digest) if digest is not None else {}
        if stated and _has_the_outline_of(folder, stated):
            return cls(folder, stated, read=False)
        found = _plain_files(folder)
        found.pop(LIST, None)
        return cls(folder, {name: _sha256(folder / name) for name in found}, read=True)

    @property
    def digest(self) -> str:
        """SHA-256 over the relative paths and the contents of all files."""
        return hashlib.sha256(self._list().encode()).hexdigest()

    def part(self, relative: str) -> Contents:
        """Return the contents of a folder within this one.

        Raises:
            UntrustedBundle: there is none.
        """
        start = f"{relative}/"
        files = {name.removeprefix(start): sha256 for name, sha256 in self.files.items() if name.startswith(start)}
        if not files:
            raise UntrustedBundle(f"The bundle lacks its folder {relative!r}.", hint="Make the variant again.")
        return Contents(self.folder / relative, files, self.read)

    def checked(self, *, only: Collection[str] | None = None) -> Path:
        """Return the folder after making sure that it holds the files of the list, and that they are those.

        Args:
            only: Names that are looked at; None looks at all.

        Raises:
            UntrustedBundle: it does not.
        """
        if self.read:
            return self.folder
        there = set(_plain_files(self.folder) if only is None else filter(self._holds, only))
        listed = {name for name in self.files if only is None or name in only}
        wrong = there ^ listed or {name for name in listed if _sha256(self.folder / name) != self.files[name]}
        if wrong:
            raise UntrustedBundle(
                f"The file {min(wrong)!r} of the bundle in {str(self.folder)!r} is not the one that was registered: "
                "its digest is another.",
                hint="Somebody changed the stored files. Restore them, or make the variant again.",
            )
        return self.folder

    def _holds(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def write_list(self) -> None:
        """Write the list beside the files."""
        (self.folder / LIST).write_text(self._list(), encoding="utf-8")

    def _list(self) -> str:
        return "".join(f"{len(name)}:{name}:{sha256}\n" for name, sha256 in self.files.items())


def folder_digest(folder: Path) -> str:
    """Return :attr:`Contents.digest` of a folder's files, all of which are read; raises as :meth:`Contents.of`."""
    return Contents.of(folder).digest


def folder_size_mb(folder: Path) -> float:
    """Return the size of a folder's files in MB (10^6 bytes); raises as :meth:`Contents.of`."""
    return sum(entry.stat().st_size for entry in _plain_files(folder).values()) / 1e6


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stated(path: Path, digest: str) -> dict[str, str]:
    """Return the digests by path that a list says; none where there is no list of that digest."""
    try:
        text = path.read_bytes()
    except OSError:
        return {}
    if hashlib.sha256(text).hexdigest() != digest:
        return {}
    lines = (line.partition(":")[2].rpartition(":") for line in text.decode().splitlines())
    return {name: sha256 for name, _, sha256 in lines}


def _has_the_outline_of(folder: Path, files: Collection[str]) -> bool:
    """Whether a folder and those within it hold what some files need, no links, nothing else; parts are not entered."""
    if folder.is_symlink():
        return False
    expected: dict[str, set[str]] = {"": {LIST}}
    for name in files:
        first, _, rest = name.partition("/")
        expected[""].add(first)
        if rest:
            expected.setdefault(first, set()).add(rest.partition("/")[0])
    for start, names in expected.items():
        try:
            with os.scandir(folder / start) as entries:
                there = {entry.name: entry.is_symlink() for entry in entries}
        except OSError:
            return False
        if there.keys() != names or any(there.values()):
            return False
    return True


def _plain_files(folder: Path) -> dict[str, os.DirEntry[str]]:
    """Return the files of a folder by their relative path, sorted by it."""
    if folder.is_symlink() or not folder.is_dir():
        raise UntrustedBundle(f"{str(folder)!r} is not a folder.", hint="Check the variant's artifacts.")
    files: dict[str, os.DirEntry[str]] = {}
    within = [""]
    while within:
        start = within.pop()
        with os.scandir(folder / start) as entries:
            for entry in entries:
                name = start + entry.name
                if entry.is_dir(follow_symlinks=False):
                    within.append(f"{name}/")
                elif entry.is_file(follow_symlinks=False):
                    files[name] = entry
                else:
                    raise UntrustedBundle(
                        f"The bundle holds {name!r}, which is not a plain file.",
                        hint="A bundle never holds links or devices. Make the variant again.",
                    )
    return dict(sorted(files.items()))
