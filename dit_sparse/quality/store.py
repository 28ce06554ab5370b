"""Measurements on file, one line each, found again by all that they depend on.

A line is written when its generation is measured, so that nothing done is lost; one that was cut
off is passed over. Lines of other settings stay where they are and are never read for these.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from dit_sparse.media import named


class Store:
    """Records of one folder: key -> what was measured, in `runs.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        for line in lines:
            try:
                record = json.loads(line)
                self.records[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                continue
        # what comes next must not be added to a line that was cut off
        self.broken = bool(lines) and lines[-1] != b""

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record of a key, None when there is none."""
        return self.records.get(key)

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Write a record."""
        record = {"key": key, **record}
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        with named(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if self.broken else "") + line + "\n")
        self.broken = False
        self.records[key] = record


def contents(path: str) -> list[tuple[str, int, str]]:
    """Return name, size in bytes and SHA-256 of a file; `{part}` in the path stands for anything.

    Empty where there is no such file.
    """
    pattern = glob.escape(os.path.expanduser(path)).replace("{part}", "*")
    found = [(name, os.stat(name)) for name in sorted(glob.glob(pattern)) if os.path.isfile(name)]
    return [(name, at.st_size, _digest(name, at.st_size, at.st_mtime_ns)) for name, at in found]


@lru_cache(maxsize=64)
def _digest(name: str, size: int, changed: int) -> str:
    """Return the SHA-256 of a file, read once until its size or time of change is another."""
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(*parts: Any) -> str:
    """Return a short name of plain data: equal data, equal name."""
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
