"""`dit-sparse bench lm`: the attention of language models, prefill and decoding."""

from __future__ import annotations

from typing import Annotated

from dit_sparse.commands.bench import RUN, start
from dit_sparse.commands.options import given, option
from dit_sparse.commands.timing import Run, at_least, lengths, named, numbers
from dit_sparse.errors import ArgumentError


@given(start)
def lm(
    run: Run,
    tokens: Annotated[
        str | None, option("Size", "Lengths: 32k, or 8k..256k (default), which doubles; 1k on CPU.")
    ] = None,
    heads: Annotated[int, option("Size", "Query heads (default 32).")] = 32,
    kv_heads: Annotated[int, option("Size", "Key heads (default 8).")] = 8,
    head_dim: Annotated[int, option("Size", "Head dim (default 128).")] = 128,
    batch: Annotated[str, option("Size", "Sequences of a decoding step; default 1,16.")] = "1,16",
    phase: Annotated[
        str,
        option(
            "Lists",
            "prefill, whole (the same without causality), stripes (prefill with single keys) and "
            "decode; comma-separated; default all.",
        ),
    ] = "decode,prefill,whole,stripes",
    density: Annotated[
        str, option("Lists", "Shares of what is seen that are kept; default .1.")
    ] = ".1",
    block: Annotated[int, option("Lists", "Tokens per block of a prefill (default 128).")] = 128,
    page: Annotated[int, option("Lists", "Keys per page in decoding (default 16).")] = 16,
    alone: Annotated[
        bool, option(RUN, "Leave out FlexAttention, which compiles for every size.", "--alone")
    ] = False,
) -> None:
    """Time attention of language models: causal prefill and decoding, against the fastest dense."""
    from dit_sparse.bench import lm as measure
    from dit_sparse.bench.results import Shape

    at_least(1, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    at_least(16, block=block)
    at_least(1, page=page)
    if heads % kv_heads:
        raise ArgumentError(f"--kv-heads {kv_heads} must divide --heads {heads}")
    known = dict.fromkeys(("decode", "prefill", "whole", "stripes"))
    phases = named(phase, "--phase", {name: name for name in known})
    batches = numbers(batch, "--batch", 0, 4096)
    if any(count % 1 for count in batches):
        raise ArgumentError(f"--batch {batch}: a batch has a whole number of sequences")
    sizes = lengths(tokens or ("8k..256k" if run.on_gpu else "1k"))
    shares = numbers(density, "--density", 0, 1)
    cases = []
    # longest first: what a run is for comes before its time is over
    for length in sorted(sizes, reverse=True):
        name = f"{length // 1024}k" if length % 1024 == 0 else str(length)
        for what in phases:
            kind = "prefill" if what == "stripes" else what
            for count in batches if what == "decode" else [None]:
                many = None if count is None else int(count)
                shape = Shape(f"{kind} {name}", heads, length, head_dim, None, kv_heads, many, kind)
                size, single = (page if what == "decode" else block), what == "stripes"
                cases += [measure.Case(shape, share, size, single) for share in shares]
    # cases of one shape share its tensors and its dense rows
    order = list(dict.fromkeys(case.shape for case in cases))
    cases.sort(key=lambda case: order.index(case.shape))
    run.carry_out("lm", cases, measure.run, others=not alone)
