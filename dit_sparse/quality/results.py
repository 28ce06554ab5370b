"""What an evaluation found, as data: values per video, their intervals, and the Pareto front."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dit_sparse.errors import ArgumentError
from dit_sparse.media import part_file, publish
from dit_sparse.quality.cases import Claim
from dit_sparse.quality.intervals import Mean, Video, difference, mean

FORMAT = 1
# the value of a video that equals the dense one: no number of dB is large enough
MOST_DB = 100.0


@dataclass
class Row:
    """One case. facts: its method and settings. values: metric -> video -> number.

    layers: transformer -> layer -> mean attention error and recall.
    """

    label: str
    facts: dict[str, Any] = field(default_factory=dict)
    values: dict[str, dict[Video, float]] = field(default_factory=dict)
    layers: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    @property
    def target(self) -> float | None:
        """The density that the budget was moved to, None when it was left alone."""
        return self.facts.get("target")

    @property
    def keep(self) -> float | None:
        """The budget as it was given, None where it was moved to a target or has no name."""
        return self.facts.get("params", {}).get("keep") if self.target is None else None

    @property
    def series(self) -> str:
        """What rows of other budgets have in common with this one."""
        return self.facts.get("series", self.label)


@dataclass
class Result:
    """One evaluation; the first row is dense. failed: label -> why."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    videos: list[Video]
    rows: list[Row]
    claims: list[Claim] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def dense(self) -> Row:
        """The row that all others are set against."""
        return self.rows[0]

    @property
    def sparse(self) -> list[Row]:
        """All other rows that have been measured."""
        return [row for row in self.rows[1:] if row.values]

    def mean(self, row: Row, metric: str) -> Mean | None:
        """Return the mean of a metric over the videos, None when it was not measured.

        Ending in `_change`: the paired difference from dense. `speedup`: dense seconds over the
        row's, video by video.
        """
        name = metric.removesuffix("_change")
        own, dense = row.values.get(name, {}), self.dense.values.get(name, {})
        if metric == "speedup":
            times, plain = row.values.get("seconds", {}), self.dense.values.get("seconds", {})
            return mean({v: plain[v] / t for v, t in times.items() if v in plain and t > 0})
        return mean(own) if name == metric else difference(own, dense)

    def pairs(self, claim: Claim) -> list[tuple[Row, Row]]:
        """Return a claim's two cases at each budget at which both were measured, largest first."""
        found = {(row.series, row.target, row.keep): row for row in self.sparse}
        pairs = [
            (row, found[claim.other, target, keep])
            for (series, target, keep), row in found.items()
            if series == claim.better and (claim.other, target, keep) in found
        ]
        return sorted(pairs, key=lambda p: (p[0].target or 0, p[0].keep or 0), reverse=True)

    def front(self, gain: str = "psnr", cost: str = "seconds") -> list[Row]:
        """Return the sparse rows that no other beats in both, the fastest first."""
        points = []
        for row in self.sparse:
            have, pay = self.mean(row, gain), self.mean(row, cost)
            if have is not None and pay is not None:
                points.append((pay.value, -have.value, row))
        best, found = float("inf"), []
        for _, loss, row in sorted(points, key=lambda p: p[:2]):
            if loss < best:
                best, found = loss, [*found, row]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        rows = []
        for row in self.rows:
            values = {
                name: [found.get(video) for video in self.videos]
                for name, found in row.values.items()
            }
            told = {name: self.mean(row, name) for name in (*row.values, *CHANGES)}
            rows.append({
                "label": row.label,
                **row.facts,
                "means": {k: v.to_dict() for k, v in told.items() if v is not None},
                "values": values,
                "layers": row.layers,
            })  # fmt: skip
        return {
            "eval": FORMAT,
            "settings": self.settings,
            "machine": self.machine,
            "videos": [{"prompt": prompt, "seed": seed} for prompt, seed in self.videos],
            "rows": rows,
            "front": [row.label for row in self.front()],
            "claims": [asdict(claim) for claim in self.claims],
            "failed": self.failed,
        }

    def write(self, path: Path) -> None:
        """Write the result as JSON, a line for each row; the file is whole when it appears."""
        told = self.to_dict()
        rows = ",\n  ".join(_text(row) for row in told["rows"])
        rest = [f"{_text(key)}: {_text(value)}" for key, value in told.items() if key != "rows"]
        text = ",\n ".join([*rest, f'"rows": [\n  {rows}\n ]'])
        with part_file(path) as part:
            part.write_text(f"{{\n {text}\n}}\n", "utf-8")
            publish(part, path, overwrite=True)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read a result that `write` wrote."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if "task" in told:
                raise ValueError(f"it is of texts; add --task {told['task']}")
            if told["eval"] != FORMAT:
                raise ValueError(f"its format is {told['eval']}, not {FORMAT}")
            videos = [(video["prompt"], video["seed"]) for video in told["videos"]]
            rows = [_row(row, videos) for row in told["rows"]]
            claims = [Claim(**claim) for claim in told.get("claims", [])]
            return cls(told["settings"], told["machine"], videos, rows, claims, told["failed"])
        except OSError as error:
            raise ArgumentError(f"{path} cannot be read: {error}") from None
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            text = f"{type(error).__name__}: {error}"
            raise ArgumentError(f"{path} is no result of `dit-sparse eval`: {text}") from None


# what is told beside the measured values themselves
CHANGES = ("flicker_change", "warped_error_change", "right_change", "speedup")


def _text(value: Any) -> str:
    """Return plain data as JSON in one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _row(told: dict[str, Any], videos: Iterable[Video]) -> Row:
    """Return a row from its JSON."""
    videos = list(videos)
    values = {
        name: {video: v for video, v in zip(videos, found, strict=True) if v is not None}
        for name, found in told["values"].items()
    }
    own = ("label", "means", "values", "layers")
    facts = {key: value for key, value in told.items() if key not in own}
    return Row(told["label"], facts, values, told["layers"])
