"""A result as tables: the cases, their layers, the claims."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from dit_sparse.quality.intervals import Mean, difference
from dit_sparse.quality.results import Result, Row

LAYERS = 12  # columns of the table by layer; more layers are averaged in groups


# title, metric, how it is written
COLUMNS = (
    ("measured density", "density", ".3f"),
    ("PSNR, dB", "psnr", ".2f"),
    ("SSIM", "ssim", ".3f"),
    ("LPIPS", "lpips", ".3f"),
    ("flicker - dense", "flicker_change", "+.4f"),
    ("warped error - dense", "warped_error_change", "+.5f"),
    ("all attributes right", "right", "%"),
    ("right - dense", "right_change", "+%"),
    ("attention error", "error", ".3f"),
    ("recall", "recall", ".3f"),
    ("denoising, s", "seconds", ".2f"),
    ("speed-up", "speedup", ".2fx"),
)
# these stand without their interval: they hardly vary, or the paired value beside them has it
BARE = ("density", "ssim", "right", "error", "recall", "seconds")
# too much for a terminal
WIDE = ("lpips", "flicker_change", "warped_error_change", "right_change")


def shown(found: Mean | None, form: str, bare: bool = False) -> str:
    """Write a mean with its interval, "" where there is none."""
    if found is None:
        return ""
    end, scale = "", 1.0
    if form.endswith("%"):
        form, end, scale = form[:-1] + ".1f", " %" if form == "%" else " points", 100.0
    elif form.endswith("x"):
        form, end = form[:-1], "x"
    value = f"{scale * found.value:{form}}"
    if found.half is None or bare:
        return value + end
    return f"{value} ± {scale * found.half:{form.removeprefix('+')}}{end}"


def rows(
    result: Result, target: float | None = None, brief: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return the titles and the cells of the cases of one target density, the best first.

    brief: leave out the columns that a terminal has no room for.
    """
    sparse = [row for row in result.sparse if row.target == target]
    front = {row.label for row in result.front()}

    def quality(row: Row) -> float:
        found = result.mean(row, "psnr")
        return -found.value if found else 0.0

    cells = {
        title: [shown(result.mean(row, metric), form, metric in BARE) for row in sparse]
        for title, metric, form in COLUMNS
        if not (brief and metric in WIDE)
    }
    columns: dict[str, list[str]] = {
        "method": [row.label if target is None else row.series for row in sparse],
        **{title: found for title, found in cells.items() if any(found)},
    }
    if front and any(row.label in front for row in sparse):
        columns["front"] = ["yes" if row.label in front else "" for row in sparse]
    order = sorted(range(len(sparse)), key=lambda i: quality(sparse[i]))
    return list(columns), [[found[i] for found in columns.values()] for i in order]


def notes(result: Result) -> Iterator[str]:
    """Yield what belongs under the tables."""
    prompts = len({prompt for prompt, _ in result.videos})
    yield f"{len(result.videos)} videos of {prompts} prompts; each case against dense of its seed"
    psnr = [result.mean(row, "psnr") for row in result.sparse]
    if psnr and psnr[0] is not None:
        over = psnr[0].over
        text = f"±: 95 % interval of Student's t over {psnr[0].n} {over}"
        yield text + (", of paired differences where one is shown" if psnr[0].n > 1 else "")
    own = (
        ("denoising", "seconds", ".2f"),
        ("all attributes right", "right", "%"),
        ("flicker", "flicker", ".4f"),
        ("warped error", "warped_error", ".5f"),
    )
    told = [(what, shown(result.mean(result.dense, metric), form)) for what, metric, form in own]
    told = [f"{what} {text}" + (" s" if what == "denoising" else "") for what, text in told if text]
    if told:
        yield "dense: " + ", ".join(told)
    if result.front():
        yield "front: no other case is both faster and nearer to dense"
    for label, why in result.failed.items():
        yield f"not measured: {label}: {why}"
    facts = {k: v for k, v in result.machine.items() if k != "device"}
    yield f"{result.machine['device']}: " + ", ".join(f"{k} {v}" for k, v in facts.items())
    told = [f"{k} {v}" for k, v in result.settings.items() if v not in (None, "", {}, [])]
    if told:
        yield "settings: " + ", ".join(told)


def layers(result: Result, key: str) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield by transformer its name, the titles and the cells of a mean by layer."""
    parts = dict.fromkeys(part for row in result.sparse for part in row.layers)
    for part in parts:
        found = [row for row in result.sparse if part in row.layers]
        numbers = sorted({int(n) for row in found for n in row.layers[part]})
        size = ceil(len(numbers) / LAYERS)
        groups = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        titles = [str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups]
        yield part, ["method", *titles], [[row.label, *_by_group(row.layers[part], groups, key)]
                                        for row in found]  # fmt: skip


def _by_group(told: dict[str, dict[str, float]], groups: list[list[int]], key: str) -> list[str]:
    """Return the mean over each group of layers, "" where all of them were dense."""
    cells = []
    for group in groups:
        values = [told[str(n)][key] for n in group if str(n) in told]
        cells.append(f"{sum(values) / len(values):.3f}" if values else "")
    return cells


def claims(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return the titles and the cells of the paired differences that were asked for."""
    titles = ["claim", "density", "keep", "difference in PSNR, dB", "in attention error", ""]
    cells = []
    for claim in result.claims:
        for pair in result.pairs(claim):
            better, other = (row.values for row in pair)
            found = difference(better.get("psnr", {}), other.get("psnr", {}))
            if found is not None:
                says = "open"
                if found.sure:
                    says = "confirmed" if found.value > 0 else "contradicted"
                error = shown(difference(better.get("error", {}), other.get("error", {})), "+.4f")
                budget = ["" if b is None else f"{b:g}" for b in (pair[0].target, pair[0].keep)]
                cells.append([claim.says, *budget, shown(found, "+.2f"), error, says])
    # a kind of budget that no pair has needs no column
    used = [i for i in range(len(titles)) if i not in (1, 2) or any(row[i] for row in cells)]
    return [titles[i] for i in used], [[row[i] for i in used] for row in cells]


def targets(result: Result) -> list[float | None]:
    """Return the target densities, the largest first; None stands for budgets left alone."""
    found = {row.target for row in result.sparse}
    numbers = sorted((t for t in found if t is not None), reverse=True)
    return [*numbers, *([None] if None in found else [])]


def markdown(result: Result) -> str:
    """Return all tables as Markdown."""
    parts = []
    for target in targets(result):
        if target is not None:
            parts.append(f"Density {target:g}")
        parts.append(_table(*rows(result, target)))
    titles, cells = claims(result)
    if cells:
        parts += ["Paired differences, the first minus the second:", _table(titles, cells)]
    parts.append("\n".join(f"- {note}" for note in notes(result)))
    kinds: tuple[tuple[str, str], ...] = (("error", "Attention error"), ("recall", "Recall"))
    for key, what in kinds:
        for part, titles, cells in layers(result, key):
            parts += [f"{what} by layer of the {part}:", _table(titles, cells)]
    return "\n\n".join(parts) + "\n"


def _table(titles: list[str], cells: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *cells]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
