"""A run as a table: one row per thing timed, and why the others were not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dit_sparse.bench.machine import PARTS
from dit_sparse.bench.method import STAGES
from dit_sparse.bench.results import Result, Row, exponent

Cell = Callable[[Result, Row], str]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def ms(value: float | None) -> str:
    """Write a time with three digits."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _density(row: Row) -> str:
    return f"{row.density:.3g}" if row.amount is not None else ""


def _gib(value: float | None) -> str:
    """Write a number of bytes in GiB with three digits."""
    return "" if value is None else f"{value / 2**30:.3g}"


def _rate(result: Result, row: Row) -> str:
    """Write the traffic of a decoding step, in GB/s."""
    if row.shape.phase != "decode" or not row.ms:
        return ""
    return ms(row.shape.bytes(result.limits.itemsize, row.density) / row.ms / 1e6)


def _per_token(row: Row) -> str:
    """Write the bytes of a call for each token of each head."""
    held = row.bytes.get("call")
    return "" if held is None else f"{held / row.shape.heads / row.shape.tokens:.0f}"


COMMON: dict[str, Cell] = {
    "shape": lambda result, row: row.shape.name,
    "size": lambda result, row: row.shape.describe(),
    "what": lambda result, row: row.label,
    "density": lambda result, row: _density(row),
    "ms": lambda result, row: ms(row.ms),
    "against dense": lambda result, row: _times(result.against_dense(row)),
}
ATTENTION: dict[str, Cell] = {
    "TFLOP/s": lambda result, row: ms(result.tflops(row)),
    "of limit": lambda result, row: _share(result.of_limit(row)),
}
ERROR: dict[str, Cell] = {
    "error": lambda result, row: "" if row.error is None else f"{row.error:.2f}",
}
COLUMNS: dict[str, dict[str, Cell]] = {
    "kernel": {**COMMON, **ATTENTION, **ERROR},
    "method": {
        **COMMON,
        "eager": lambda result, row: ms(row.eager),
        "over kept": lambda result, row: _times(result.over_kept(row)),
        **ATTENTION,
        **ERROR,
        **{name: lambda _, row, name=name: ms(row.stages.get(name)) for name in STAGES},
    },
    "step": {
        **COMMON,
        "settings": lambda result, row: "published" if "profile" in row.settings else "",
        "whole run": lambda result, row: _times(result.whole_run(row)),
        "attention": lambda result, row: _share(result.attention(row)),
        **ERROR,
        **{name: lambda _, row, name=name: ms(row.stages.get(name)) for name in PARTS},
    },
    "lm": {
        **COMMON,
        **ATTENTION,
        "GB/s": lambda result, row: _rate(result, row),
        **ERROR,
    },
    "memory": {
        **{title: COMMON[title] for title in ("shape", "size", "what", "density")},
        "q, k, v, GiB": lambda result, row: _gib(0.75 * row.shape.bytes(result.limits.itemsize)),
        "plan, GiB": lambda _, row: _gib(row.bytes.get("plan")),
        "call, GiB": lambda _, row: _gib(row.bytes.get("call")),
        "bytes per token and head": lambda _, row: _per_token(row),
    },
}


def rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return the titles and the text of every measured row, without columns that say nothing."""
    found = [row for row in result.rows if row.amount is not None]
    columns = {
        title: [cell(result, row) for row in found] for title, cell in COLUMNS[result.kind].items()
    }
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    return list(columns), [list(cells) for cells in zip(*columns.values(), strict=True)]


def line(row: Row) -> str:
    """Write a row in one line, as it is shown while the run goes on."""
    what = f"{row.shape.name} {row.label}"
    what += f" keep {row.settings['keep']:g}" if "keep" in row.settings else ""
    if row.amount is None:
        return f"{what}: not run: {row.why}"
    return f"{what}: {_gib(row.bytes['call'])} GiB" if row.bytes else f"{what}: {ms(row.ms)} ms"


def notes(result: Result) -> Iterator[str]:
    """Yield what belongs under the table."""
    told = {k: v for k, v in result.machine.items() if k != "device"}
    yield f"{result.machine['device']}: " + ", ".join(f"{k} {v}" for k, v in told.items())
    limits = result.limits
    yield f"limits of this run: matmul {limits.tflops:.3g} TFLOP/s, copy {limits.gbs:.3g} GB/s"
    yield f"kernel: {result.kernel[0]} ({result.kernel[1]})"
    for key, series in result.series().items():
        at = "" if not key[1] else f" keep {key[2]:g}"
        what = "memory" if result.kind == "memory" else "time"
        yield f"{key[0]}{at}: {what} grows as tokens^{exponent(series):.2f}"
    seen: dict[tuple[str, str], list[str]] = {}
    for row in result.rows:
        if row.amount is None:
            places = seen.setdefault((row.what, row.why), [])
            places += [row.shape.name] if row.shape.name not in places else []
    for (what, why), places in seen.items():
        yield f"not run: {what} on {', '.join(places)}: {why}"


def markdown(result: Result) -> str:
    """Return the table as Markdown."""
    titles, body = rows(result)
    lines = [titles, ["---"] * len(titles), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
