"""What a benchmark run is, as data: shapes, rows, the machine and its two limits."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dit_sparse.core import Grid
from dit_sparse.errors import ArgumentError
from dit_sparse.media import part_file, publish


@dataclass(frozen=True)
class Shape:
    """The size of one self-attention call; grid: what its tokens mean, if anything.

    Of a language model: kv_heads, as many as heads where they are None; batch, None for 1; phase:
    "prefill" is causal, in "decode" a sequence has one query.
    """

    name: str
    heads: int
    tokens: int
    head_dim: int
    grid: Grid | None = None
    kv_heads: int | None = None
    batch: int | None = None
    phase: str | None = None

    @classmethod
    def video(cls, name: str, heads: int, head_dim: int, grid: Grid) -> Shape:
        """Return the shape of the tokens of a grid."""
        return cls(name, heads, grid.tokens, head_dim, grid)

    def flops(self, density: float = 1.0) -> float:
        """Return the useful operations: two products of 2 d operations per computed pair."""
        pairs = self.tokens * {"decode": 1, "prefill": (self.tokens + 1) / 2}.get(
            self.phase or "", self.tokens
        )
        return density * 4 * (self.batch or 1) * self.heads * pairs * self.head_dim

    def bytes(self, itemsize: int, density: float = 1.0) -> int:
        """Return the least traffic: q, k, v read once and the output written once.

        In decoding, the kept keys alone are read.
        """
        is_step = self.phase == "decode"
        keys = (self.kv_heads or self.heads) * self.tokens * (density if is_step else 1)
        queries = self.heads * (1 if is_step else self.tokens)
        return round(2 * (self.batch or 1) * (keys + queries) * self.head_dim * itemsize)

    def describe(self) -> str:
        """Write the size as the tables of this project do."""
        groups = "" if self.kv_heads is None else f"/{self.kv_heads}"
        batch = "" if self.batch is None else f" x{self.batch}"
        return f"H{self.heads}{groups} N{self.tokens} d{self.head_dim}{batch}"


# Wan2.1-1.3B at 480p, a quarter of HunyuanVideo's heads at 720p, CogVideoX-5B: lengths that blocks
# divide, for kernels alone, and the same videos as they are, for methods
KERNEL_SHAPES = {
    "A": Shape("A", 12, 32768, 128),
    "B": Shape("B", 6, 118784, 128),
    "C": Shape("C", 48, 17664, 64),
    "toy": Shape("toy", 2, 1024, 64),
}
VIDEO_SHAPES = {
    "A": Shape.video("A", 12, 128, Grid(21, 30, 52)),
    "B": Shape.video("B", 6, 128, Grid(33, 45, 80)),
    "C": Shape.video("C", 48, 64, Grid(13, 30, 45, text=226)),
    "toy": Shape.video("toy", 2, 64, Grid(5, 12, 16)),
}


# what a row's JSON also tells: methods of Result
DERIVED = ("tflops", "against_dense", "of_limit", "over_kept", "attention", "whole_run")
# left out of a row's JSON where they say nothing
RARE = ("wrong", "foreign", "dense_steps", "bytes")
# what a step is called whose self-attention returns v
WITHOUT = "without attention"


@dataclass(frozen=True)
class Row:
    """One thing that was to be timed.

    what: the name of what ran. sparse: False for baselines that compute every pair; foreign:
    another project's kernel. settings: how it was asked for. density: share of the query-key pairs
    that its plan computes. ms: median, None when it was not timed. eager: the same launched from
    Python, where ms is that of a CUDA graph. error: of the output, as a share of its bound. why:
    the reason it was not timed; wrong: that its output is wrong, or that ours failed. stages: ms of
    each stage by itself. dense_steps: share of a generation's steps that a method leaves dense.
    bytes: held at once beyond the inputs, where memory is what was measured.
    """

    shape: Shape
    what: str
    sparse: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    density: float = 1.0
    ms: float | None = None
    eager: float | None = None
    error: float | None = None
    why: str = ""
    wrong: bool = False
    foreign: bool = False
    stages: dict[str, float] = field(default_factory=dict)
    dense_steps: float = 0.0
    bytes: dict[str, int] = field(default_factory=dict)

    @property
    def amount(self) -> float | None:
        """What was measured: the time, or the memory of the whole call; None when nothing was."""
        return self.bytes.get("call", self.ms)

    @property
    def ours(self) -> bool:
        """Whether it is this project's; others may be wrong without failing the run."""
        return self.sparse and not self.foreign

    @property
    def label(self) -> str:
        """The name with the settings that set a series of rows apart."""
        apart = {k: v for k, v in self.settings.items() if k not in ("keep", "profile")}
        return " ".join([self.what, *(f"{k} {v}" for k, v in apart.items())])


@dataclass(frozen=True)
class Limits:
    """What the machine can do: a matrix product in TFLOP/s and a copy in GB/s, of this run."""

    tflops: float
    gbs: float
    itemsize: int

    def ms(self, shape: Shape, density: float) -> float:
        """Return the least time of an attention call: the slower of its products and traffic."""
        products = shape.flops(density) / self.tflops / 1e9
        return max(products, shape.bytes(self.itemsize, density) / self.gbs / 1e6)


@dataclass
class Result:
    """One run. kind: kernel, method, step, memory or lm; kernel: (name, reason) of ours."""

    kind: str
    machine: dict[str, Any]
    limits: Limits
    kernel: tuple[str, str]
    rows: list[Row] = field(default_factory=list)

    def dense(self, shape: Shape) -> Row | None:
        """Return the fastest dense row of a shape."""
        rows = [r for r in self.rows if r.shape == shape and not r.sparse and r.ms is not None]
        return min(rows, key=lambda r: r.ms or math.inf) if rows else None

    def against_dense(self, row: Row) -> float | None:
        """Return how many times faster than the fastest dense a row is."""
        dense = self.dense(row.shape)
        return None if dense is None or not dense.ms or not row.ms else dense.ms / row.ms

    def whole_run(self, row: Row) -> float | None:
        """Return how many times faster a generation is, its dense first steps included."""
        speed = self.against_dense(row) if self.kind == "step" else None
        return speed and 1 / (row.dense_steps + (1 - row.dense_steps) / speed)

    def over_kept(self, row: Row) -> float | None:
        """Return the time of a whole method over that of its kept blocks alone."""
        kept = row.stages.get("kept")
        return row.ms / kept if row.ms and kept else None

    def tflops(self, row: Row) -> float | None:
        """Return useful TFLOP/s of attention; a whole step does more than attention."""
        if self.kind == "step" or not row.ms:
            return None
        return row.shape.flops(row.density) / row.ms / 1e9

    def of_limit(self, row: Row) -> float | None:
        """Return the least possible time as a share of the row's."""
        if self.kind == "step" or not row.ms:
            return None
        return self.limits.ms(row.shape, row.density) / row.ms

    def attention(self, row: Row) -> float | None:
        """Return attention's share of a whole step's time."""
        rows = [r for r in self.rows if r.shape == row.shape and r.what == WITHOUT and r.ms]
        if not rows or not row.ms or row.what == WITHOUT:
            return None
        return max(0.0, 1 - (rows[0].ms or 0.0) / row.ms)

    def series(self) -> dict[tuple, list[Row]]:
        """Return the rows that differ in length alone, by length: three or more of each."""
        found: dict[tuple, list[Row]] = {}
        for row in self.rows if self.kind != "step" else ():
            if row.amount is not None:
                # a length may round the density that was asked for
                keep = row.settings.get("keep", row.density)
                shape = row.shape
                label = " ".join([row.label, *([shape.phase] if shape.phase else [])])
                label += "" if shape.batch is None else f" x{shape.batch}"
                key = (label, row.sparse, keep, shape.heads, shape.head_dim)
                found.setdefault(key, []).append(row)
        for rows in found.values():
            rows.sort(key=lambda r: r.shape.tokens)
        return {k: rows for k, rows in found.items() if len({r.shape.tokens for r in rows}) > 2}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        rows = []
        for row in self.rows:
            data = {k: v for k, v in asdict(row).items() if v is not None and v != "" and v != {}}
            data = {k: v for k, v in data.items() if v or k not in RARE}
            data["shape"] = {k: v for k, v in data["shape"].items() if v is not None}
            for name in DERIVED:
                value = getattr(self, name)(row)
                if value is not None:
                    data[name] = value
            rows.append(data)
        return {
            "bench": self.kind,
            "machine": self.machine,
            "limits": asdict(self.limits),
            "kernel": {"implementation": self.kernel[0], "reason": self.kernel[1]},
            "rows": rows,
            "exponents": [
                {"series": key[0], "keep": key[2], "exponent": exponent(rows)}
                for key, rows in self.series().items()
            ],
        }

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `write` wrote; raise when it is something else."""
        try:
            told = json.loads(path.read_text("utf-8"))
            kernel = told["kernel"]["implementation"], told["kernel"]["reason"]
            rows = [_row(data) for data in told["rows"]]
            return cls(told["bench"], told["machine"], Limits(**told["limits"]), kernel, rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            text = f"{type(error).__name__}: {error}"
            raise ArgumentError(f"{path} is no result of dit-sparse bench ({text})") from None

    def write(self, path: Path) -> None:
        """Write the run as JSON; the file appears under its name when it is whole."""
        with part_file(path) as part:
            part.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", "utf-8")
            publish(part, path, overwrite=True)


def _row(data: dict[str, Any]) -> Row:
    """Return the row of plain data; what follows from other rows is left out."""
    data = {k: v for k, v in data.items() if k not in DERIVED}
    shape = dict(data["shape"])
    if "grid" in shape:
        shape["grid"] = Grid(**shape["grid"])
    return Row(**{**data, "shape": Shape(**shape)})


def exponent(rows: list[Row]) -> float:
    """Return p of the best fit amount = c tokens^p, by least squares on logarithms."""
    points = [(math.log(r.shape.tokens), math.log(r.amount)) for r in rows if r.amount]
    x, y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    spread = sum((a - x) ** 2 for a, _ in points)
    return sum((a - x) * (b - y) for a, b in points) / spread
