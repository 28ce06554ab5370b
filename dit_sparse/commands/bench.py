"""`dit-sparse bench`: times against the fastest dense attention, and memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_sparse.commands.options import OUTPUT, given, option
from dit_sparse.commands.request import (
    check_guard,
    check_name,
    check_set,
    of_case,
    parse_setting,
    split_case,
)
from dit_sparse.commands.timing import Run, at_least, lengths, named, numbers, sizes
from dit_sparse.errors import ArgumentError

if TYPE_CHECKING:
    from dit_sparse.bench.step import Params

RUN = "Run"

Device = Annotated[str, option(RUN, "auto (default), cpu, cuda or cuda:N.")]
Dtype = Annotated[
    str, option(RUN, "bfloat16 (default on a GPU), float16 or float32 (default on a CPU).")
]
Impl = Annotated[str, option(RUN, "Our kernel: auto (default), triton or torch.")]
Seconds = Annotated[float, option(RUN, "Start nothing new after so many seconds.")]
Quick = Annotated[bool, option(RUN, "Fewer repetitions: a first look.", "--quick")]
Out = Annotated[Path | None, option(OUTPUT, "Write all rows to this .json file.")]
Plot = Annotated[Path | None, option(OUTPUT, "Draw them to this .png or .svg file.")]
Quiet = Annotated[bool, option(OUTPUT, "Print nothing but the names of the files.", "--quiet")]
Json = Annotated[bool, option(OUTPUT, "Print JSON instead of the table.", "--json")]
Markdown = Annotated[bool, option(OUTPUT, "Print a Markdown table.", "--markdown")]
Debug = Annotated[bool, option(OUTPUT, "Show tracebacks and library warnings.", "--debug")]
Shapes = Annotated[
    str | None,
    option("Size", "A, B, C (comma-separated) or toy. Default: A, B, C; toy on a CPU."),
]
Heads = Annotated[int | None, option("Size", "Own size: query heads (default 12).")]
HeadDim = Annotated[int | None, option("Size", "Own size: head dim (default 128).")]
Methods = Annotated[
    str | None, option("Method", "Comma-separated; default: all that have a budget.")
]
Budgets = Annotated[str, option("Method", "Budgets, comma-separated; default .1.")]
Set = Annotated[
    list[str] | None,
    option("Method", "Any parameter of the one method; repeatable.", metavar="KEY=VALUE"),
]

CaseOption = Annotated[
    list[str] | None,
    option(
        "Method",
        'A method with settings, e.g. "pisa queries=128"; repeatable.',
        "--case",
        metavar="TEXT",
    ),
]

app = typer.Typer(rich_markup_mode="rich", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Time the kernel, whole methods or one denoising step; dense attention in the same run.

    Nothing is timed whose output is wrong. Useful operations are counted from the plan.
    """


def start(
    device: Device = "auto",
    dtype: Dtype = "auto",
    impl: Impl = "auto",
    seconds: Seconds = 3600,
    quick: Quick = False,
    out: Out = None,
    plot: Plot = None,
    quiet: Quiet = False,
    json: Json = False,
    markdown: Markdown = False,
    debug: Debug = False,
) -> Run:
    """Return the run that these options ask for; raise for the first that cannot work."""
    run = Run(device, dtype, impl, seconds, quick, out, plot, quiet, json, markdown, debug)
    run.check()
    return run


@app.command("kernel")
@given(start)
def kernel(
    run: Run,
    shape: Shapes = None,
    heads: Heads = None,
    head_dim: HeadDim = None,
    tokens: Annotated[
        str | None, option("Size", "Own size: 32k, 8k,32k or 8k..256k, which doubles.")
    ] = None,
    density: Annotated[
        str, option("Lists", "Shares of the blocks that are kept; default .5,.25,.1,.05.")
    ] = ".5,.25,.1,.05",
    block_q: Annotated[int, option("Lists", "Queries per block (default 128).")] = 128,
    block_kv: Annotated[
        str, option("Lists", "Keys per block: 128 (default), 64, or 128,64.")
    ] = "128",
    spread: Annotated[
        str, option("Lists", "Longest list over the shortest: 1 (default), 10, or 1,10.")
    ] = "1",
    form: Annotated[
        str,
        option(
            "Lists",
            "equal (default), or other calls that methods make: boxes, clusters, columns, tail, "
            "listed, choice; comma-separated.",
        ),
    ] = "equal",
    quant: Annotated[
        str, option("Lists", "Our products: none (default), fp8, or none,fp8.")
    ] = "none",
    alone: Annotated[
        bool, option(RUN, "Leave out the block-sparse kernels of others.", "--alone")
    ] = False,
) -> None:
    """Time the attention kernel on random block lists, one per head and query block."""
    from dit_sparse.bench import kernel as measure
    from dit_sparse.bench.lists import FORMS, Case
    from dit_sparse.bench.results import KERNEL_SHAPES, Shape
    from dit_sparse.kernels.contract import QUANTS

    at_least(1, heads=heads, head_dim=head_dim)
    at_least(16, block_q=block_q)
    widths = numbers(block_kv, "--block-kv", 15, 1 << 20)
    if any(width % 1 for width in widths):
        raise ArgumentError(f"--block-kv {block_kv}: a block has a whole number of keys")
    shapes = _shapes(shape, KERNEL_SHAPES, run, heads, head_dim, tokens)
    if shapes is None:
        h, d = heads or 12, head_dim or 128
        shapes = [Shape(_count(n), h, n, d) for n in lengths(tokens or "32k")]
    cases = [
        Case(size, share, block_q, int(keys), ratio, shown)
        for size in shapes
        for keys in widths
        for share in numbers(density, "--density", 0, 1)
        for ratio in numbers(spread, "--spread", 0.999, 1e6)
        for shown in named(form, "--form", dict(zip(FORMS, FORMS, strict=True)))
    ]
    quants = tuple(named(quant, "--quant", dict(zip(QUANTS, QUANTS, strict=True))))
    run.carry_out("kernel", cases, measure.run, others=not alone, quants=quants)


@app.command("method")
@given(start)
def method(
    run: Run,
    shape: Shapes = None,
    heads: Heads = None,
    head_dim: HeadDim = None,
    tokens: Annotated[
        str | None,
        option("Size", "Own lengths, in whole frames of 30 x 52 tokens: 32k, or 8k..256k."),
    ] = None,
    grid: Annotated[
        str | None, option("Size", "Own videos: FRAMESxHEIGHTxWIDTH in tokens, e.g. 21x30x52.")
    ] = None,
    method: Methods = None,
    keep: Budgets = ".1",
    set: Set = None,
    case: CaseOption = None,
) -> None:
    """Time whole methods in the warm state, selection and remainder included, stage by stage."""
    from dit_sparse.bench import method as measure
    from dit_sparse.bench.results import VIDEO_SHAPES

    at_least(1, heads=heads, head_dim=head_dim)
    shapes = _shapes(shape, VIDEO_SHAPES, run, heads, head_dim, tokens, grid)
    if shapes is None:
        shapes = _videos(grid, tokens, heads, head_dim) or _videos(None, "32k", heads, head_dim)
    run.carry_out("method", _methods(shapes, method, keep, set, case), measure.run)


@app.command("memory")
@given(start, quick=True)
def memory(
    run: Run,
    tokens: Annotated[
        str | None,
        option("Size", "Lengths, in whole frames of 30 x 52 tokens; default 32k..512k."),
    ] = None,
    grid: Annotated[
        str | None, option("Size", "Also videos: FRAMESxHEIGHTxWIDTH in tokens, e.g. 21x45x80.")
    ] = None,
    heads: Heads = None,
    head_dim: HeadDim = None,
    method: Methods = None,
    keep: Budgets = ".1",
    set: Set = None,
    case: CaseOption = None,
) -> None:
    """Measure the most memory that methods hold beyond q, k and v, and how it grows with length."""
    from dit_sparse.bench import memory as measure

    at_least(1, heads=heads, head_dim=head_dim)
    shapes = _videos(grid, tokens, heads, head_dim) or _videos(None, "32k..512k", heads, head_dim)
    run.carry_out("memory", _methods(shapes, method, keep, set, case), measure.run)


@app.command("step")
@given(start)
def step(
    run: Run,
    model: Annotated[
        str | None, option("Model", "Comma-separated names of architectures; default: all.")
    ] = None,
    size: Annotated[
        str | None, option("Model", "HEIGHTxWIDTHxFRAMES in pixels; default: as published.")
    ] = None,
    tiny: Annotated[
        bool, option("Model", "Two narrow layers and a small video: the same code.", "--tiny")
    ] = False,
    compile: Annotated[
        bool, option("Model", "Compile the blocks, dense and sparse alike.", "--compile")
    ] = False,
    method: Annotated[
        str | None, option("Method", "Comma-separated; default pisa. Settings: as published.")
    ] = None,
    keep: Annotated[float | None, option("Method", "Another budget than the published.")] = None,
    guard: Annotated[
        float | None, option("Method", "Time each also with a quality guard of this bound.")
    ] = None,
    set: Set = None,
    case: CaseOption = None,
) -> None:
    """Time a forward of a real architecture with random weights: dense, sparse, no attention."""
    from dit_sparse.bench import step as measure
    from dit_sparse.bench.architectures import ARCHITECTURES

    if not run.on_gpu and not tiny and run.device == "auto":
        raise ArgumentError(
            "no GPU found, and a step of a real architecture takes hours on a CPU; use --tiny, or "
            "--device cpu to insist"
        )
    models = named(model, "--model", ARCHITECTURES) if model else list(ARCHITECTURES.values())
    asked = sizes(size, "--size", "480x832x81") if size else None
    for height, width, frames in asked or ():
        if height % 16 or width % 16 or frames % 4 != 1:
            raise ArgumentError(
                f"--size {height}x{width}x{frames}: height and width must be multiples of 16 and "
                "frames 4 k + 1"
            )
    check_guard(guard)
    own = {} if keep is None else {"keep": numbers(f"{keep:g}", "--keep", 0, 1)[0]}
    where = [(a, s) for a in models for s in asked or (a.small if tiny else a.sizes)]

    def build(name: str, given: Params) -> list[Any]:
        params = tuple({**own, **dict(given)}.items())
        for a, s in where:
            measure.Case(a, s, (), tiny).method(name, params)
        return [(name, params)]

    methods = tuple(_settings(method if method or case else "pisa", set, case, [], build))
    cases = [measure.Case(a, s, methods, tiny, compile, guard) for a, s in where]
    run.carry_out("step", cases, measure.run)


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="A .json file that --out wrote.")],
    plot: Plot = None,
    quiet: Quiet = False,
    json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Show a finished run again: its table, or as Markdown, JSON or a picture."""
    run = Run(plot=plot, quiet=quiet, json=json, markdown=markdown)
    run.check()
    from dit_sparse.bench.results import Result

    run.show(Result.read(file))


def _shapes(names: str | None, known: dict[str, Any], run: Run, *own: object) -> list[Any] | None:
    """Return the shapes that were named, the default ones, or None when an own size was given."""
    if any(value is not None for value in own):
        if names is not None:
            raise ArgumentError(f"--shape {names} and an own size: give one of them")
        return None
    return named(names or ("A,B,C" if run.on_gpu else "toy"), "--shape", known)


def _videos(
    grid: str | None, tokens: str | None, heads: int | None, head_dim: int | None
) -> list[Any]:
    """Return the shapes of the videos of --grid, and of those of --tokens in whole frames."""
    from dit_sparse.bench.results import Shape
    from dit_sparse.core import Grid

    videos = sizes(grid, "--grid", "21x30x52") if grid else []
    videos += [(max(1, round(n / 1560)), 30, 52) for n in lengths(tokens)] if tokens else []
    return [
        Shape.video("x".join(map(str, v)), heads or 12, head_dim or 128, Grid(*v)) for v in videos
    ]


def _methods(
    shapes: list[Any], method: str | None, keep: str, set: list[str] | None, case: list[str] | None
) -> list[Any]:
    """Return every method at every shape and budget; raise for one that cannot be built."""
    from dit_sparse.bench.method import Case, names

    budgets = numbers(keep, "--keep", 0, 1)

    def build(name: str, given: Params) -> list[Any]:
        params = dict(given)
        kept = [params.pop("keep")] if "keep" in params else budgets
        made = [Case(size, name, b, tuple(params.items())) for size in shapes for b in kept]
        for each in made:
            each.build()
        return made

    found = _settings(method, set, case, names(), build)
    # tensors are drawn once for each shape
    return [made for size in dict.fromkeys(shapes) for made in found if made.shape == size]


def _settings(
    method: str | None, set: list[str] | None, case: list[str] | None, default: list[str],
    build: Callable[[str, Params], list[Any]],
) -> list[Any]:  # fmt: skip
    """Return what `build` makes of the methods of --method and --case, of `default` without any."""
    names = _named(method) if method else []
    check_set(set, names)
    found = [made for name in names for made in build(name, _params(set or []))]
    for text in case or ():
        name, words = split_case(text)
        with of_case(text):
            check_name(name)
            made = build(name, _params(words))
            if any(each in found for each in made):
                raise ArgumentError("is asked for twice")
            found += made
    return found or [made for name in default for made in build(name, ())]


def _named(methods: str) -> list[str]:
    """Return the comma-separated names of --method; raise for one that is not known."""
    found = [name.strip() for name in methods.split(",")]
    for name in found:
        check_name(name)
    return found


def _params(settings: list[str]) -> Params:
    """Return the parameters of settings KEY=VALUE, hashable."""
    # imports torch, which no --help should wait for
    from dit_sparse.parameters import as_tuples

    return tuple((key, as_tuples(value)) for key, value in map(parse_setting, settings))


def _count(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
