"""The files of the page: a folder for each generation, gone when its visitor is.

What is kept for the page's owner is a copy elsewhere, which the page does not give away.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from pathlib import Path

LOG = logging.getLogger("dit_sparse")

KEPT = 3  # generations of a visitor; the oldest makes room
LONGEST = 3600.0  # seconds; who closes a page tells, but a lost connection may not


class Files:
    """Folders below one folder, by visitor; nobody can guess the name of another's.

    keep: the folder of the copies that `save` makes, None: of none.
    """

    def __init__(self, folder: Path, keep: Path | None = None) -> None:
        self.folder, self.keep = folder, keep
        self._owned: dict[str, list[tuple[float, Path]]] = {}
        self._lock = threading.Lock()

    def new(self, visitor: str) -> Path:
        """Make an empty folder for a generation of a visitor."""
        folder = self.folder / secrets.token_hex(12)
        folder.mkdir(parents=True)
        with self._lock:
            self._owned.setdefault(visitor, []).append((time.monotonic(), folder))
        self._sweep()
        return folder

    def save(self, folder: Path) -> None:
        """Copy the files of a finished generation to where they are kept, if that can be."""
        if self.keep is None:
            return
        copy = self.keep / folder.name
        try:
            shutil.copytree(folder, copy)
        except OSError as error:
            self._remove([copy])
            LOG.warning("no copy of a generation in %s: %s", self.keep, error)

    def drop(self, visitor: str) -> None:
        """Remove the files of a visitor who has gone."""
        with self._lock:
            gone = self._owned.pop(visitor, [])
        self._remove([folder for _, folder in gone])

    def _sweep(self) -> None:
        """Remove what is old, and what is more than a visitor may have."""
        now, gone = time.monotonic(), []
        with self._lock:
            for visitor, owned in list(self._owned.items()):
                fresh = [entry for entry in owned[-KEPT:] if now - entry[0] < LONGEST]
                gone += [folder for entry in owned if entry not in fresh for folder in entry[1:]]
                self._owned[visitor] = fresh
                if not fresh:
                    del self._owned[visitor]
        self._remove(gone)

    def _remove(self, folders: list[Path]) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
