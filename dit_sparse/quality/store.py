"""Measurements on file, one line each, found again by all that they depend on.

A line is written when its generation is measured, so that nothing done is lost; one that was cut
off is passed over. Lines of other settings stay where they are and are never read for these.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if self.broken else "") + line + "\n")
        self.broken = False
        self.records[key] = record


def key_of(*parts: Any) -> str:
    """Return a short name of plain data: equal data, equal name."""
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
