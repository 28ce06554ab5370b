"""The Triton passes of the linear branch: a bound for every element, in place, any blocks."""

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.kernels import linear
from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.linear import Join, add_linear
from dit_sparse.testing import Problem, relative_error
from tests.sla_oracle import PHI

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter cuts bfloat16 off instead of rounding to nearest
CUT_OFF = 1 if DEVICE == "cuda" else 2
BATCH, HEADS, TOKENS, KEYS, TEXT = 1, 2, 75, 90, 4
PLAIN = {"groups": 1, "dim": 16, "dim_v": 16, "q": 16, "kv": 24, "phi": "softmax", "join": "weight"}
UNEQUAL = {"q": [[9, 0, 30, 20, 16], [20, 20, 1, 4, 30]], "kv": [[0, 40, 13, 37], [33, 2, 50, 5]]}
CASES = {
    "ragged": {},
    "own heads": {"groups": 2},
    "odd dims": {"dim": 20, "dim_v": 40},
    "long blocks": {"q": 70, "kv": 66},
    "unequal": {"groups": 2, **UNEQUAL},
    "unequal, grouped": {"q": UNEQUAL["q"], "kv": UNEQUAL["kv"][:1]},
    "elu": {"phi": "elu", "dim": 20},
    "relu": {"phi": "relu", "dim_v": 80},
    "alpha": {"join": "alpha"},
    "no bias": {"join": "no bias"},
    "all": {"seen": None, "dim_v": 80},
    "all, elu, unequal": {"seen": None, "phi": "elu", "q": UNEQUAL["q"]},
    "all, alpha": {"seen": None, "join": "alpha", "groups": 2},
}
ROWS = {
    torch.float32: CASES,
    torch.bfloat16: ["ragged", "unequal, grouped", "elu", "alpha", "all"],
    torch.float16: ["ragged", "all"],
}


def cut(sizes):
    if isinstance(sizes, int):
        return Cut(sizes)
    ends = torch.nn.functional.pad(torch.tensor(sizes).cumsum(-1), (1, 0))
    return Cut(max(map(max, sizes)), ends.int()[None].to(DEVICE))


def owner(sizes, tokens, heads):
    """Each token's block, [heads, tokens]."""
    if isinstance(sizes, int):
        return (torch.arange(tokens) // sizes).expand(heads, -1)
    rows = [torch.arange(len(s)).repeat_interleave(torch.tensor(s)) for s in sizes]
    return torch.stack(rows).repeat_interleave(heads // len(sizes), 0)


def draw(case, dtype):
    """Return the arguments of `add_linear`, its phi, and which token sees which, [1, H, S, Skv]."""
    p = {**PLAIN, **CASES[case]}

    def tokens(n, heads, dim, mean=0):
        # [B, S, H, D] in memory
        x = torch.randn(BATCH, n, heads, dim, device=DEVICE) + mean
        return x.to(dtype).transpose(1, 2)

    rows, cols = owner(p["q"], TOKENS, HEADS), owner(p["kv"], KEYS, HEADS)
    counts = cut(p["q"]).count(TOKENS), cut(p["kv"]).count(KEYS)
    seen = torch.rand(BATCH, HEADS, *counts) < 0.6
    seen[:, :, 0], seen[:, 0, -1] = True, False
    near = torch.stack([seen[0, h][rows[h]][:, cols[h]] for h in range(HEADS)])[None]
    if "seen" in p:
        seen, near = None, torch.ones_like(near)
    # little cancels, in the mean of the values and in the projection: the bound is near the branch
    weight, bias = torch.rand(p["dim_v"], p["dim_v"]) - 0.1, torch.randn(p["dim_v"])
    join = {
        "weight": Join(weight.to(DEVICE), bias.to(DEVICE)),
        "no bias": Join(weight.to(DEVICE)),
        "alpha": Join(alpha=torch.rand(1, HEADS, counts[0], device=DEVICE)),
    }[p["join"]]
    x = (
        tokens(TOKENS + TEXT, HEADS, p["dim_v"]),
        tokens(TOKENS, HEADS, p["dim"]),
        tokens(KEYS, p["groups"], p["dim"]),
        tokens(KEYS, p["groups"], p["dim_v"], mean=1),
        None if seen is None else seen.to(DEVICE),
        cut(p["q"]),
        cut(p["kv"]),
        join,
    )
    return x, p["phi"], near, rows


def oracle(x, phi, near, rows):
    """Return O [1, H, S, Dv] in float64 and what the roundings of O_l may grow with.

    B = sum_n w_n |v_n| / sum_n w_n bounds O_l whatever the signs; |W| and 1 - alpha carry it on.
    """
    out, q, k, v = (t.double().cpu() for t in x[:4])
    k, v = (t.repeat_interleave(HEADS // t.shape[1], 1) for t in (k, v))
    weight = PHI[phi](q) @ PHI[phi](k).mT * near
    mass = weight.sum(-1, keepdim=True) + (1e-5 if x[4] is None else 0)
    linear, grow = ((weight @ t / mass).where(mass > 0, 0) for t in (v, v.abs()))
    join, exact = x[7], out[:, :, :TOKENS]
    if join.alpha is None:
        w = join.weight.double().cpu()
        add = linear @ w.mT + (0 if join.bias is None else join.bias.double().cpu())
        return exact + add, grow @ w.abs().mT
    alpha = join.alpha.double().cpu().expand(1, HEADS, -1).gather(2, rows[None])[..., None]
    alpha = alpha.where(mass > 0, 1)
    return alpha * exact + (1 - alpha) * linear, (1 - alpha) * grow


@pytest.mark.parametrize(("case", "dtype"), [(c, d) for d, cases in ROWS.items() for c in cases])
def test_every_element_is_bounded(case, dtype, poison):
    """Numerator: phi(q), phi(k), v, h, H; denominator: phi(q), phi(k); then O_l and W.

    Nine roundings, relative to sums of absolute values: (1 + u)^7 / (1 - u)^2 - 1 of B |W|.
    float32 sums add at most one rounding a term; the output is rounded once.
    """
    x, phi, near, rows = draw(case, dtype)
    truth, grow = oracle(x, phi, near, rows)
    before = x[0].double().cpu()
    out = add_linear(*x, phi=phi, impl="triton")
    assert out is x[0] and out.dtype == dtype and out.shape == before.shape
    unit = torch.finfo(dtype).eps / 2
    single = torch.finfo(torch.float32).eps / 2
    inner = single if dtype == torch.float32 else 2.0**-8 * CUT_OFF
    terms = KEYS + sum(x[0].shape[-1:] + x[1].shape[-1:]) + 16
    bound = ((1 + inner) ** 7 / (1 - inner) ** 2 - 1 + terms * single) * grow
    # O_s, the bias and their sum in float32, the output in its own type
    bound = bound + (unit * CUT_OFF + 4 * single) * (truth.abs() + grow)
    out = out.double().cpu()
    assert ((out[:, :, :TOKENS] - truth).abs() <= bound).all()
    assert torch.equal(out[:, :, TOKENS:], before[:, :, TOKENS:])
    # the bound is not idle: the branch itself is mostly beyond it
    assert ((before[:, :, :TOKENS] - truth).abs() > bound).double().mean() > 0.5


def test_chunks_give_the_same_bits(monkeypatch):
    outs = []
    for scratch in (1024, 0):
        monkeypatch.setattr(linear, "SCRATCH_MB", scratch)
        torch.manual_seed(0)
        x, phi, *_ = draw("unequal", torch.bfloat16)
        outs.append(add_linear(*x, phi=phi, impl="triton"))
    assert torch.equal(*outs)


def test_denominators_keep_two_halves():
    """Z in bfloat16 would err by 2^-9; two numbers of 8 bits leave 2^-16, cut off 2^-14."""
    from dit_sparse.kernels.linear_passes import _choose

    seen, z = (torch.rand(1, 2, 40, 30) < 0.6).to(DEVICE), torch.rand(1, 2, 32, 16, device=DEVICE)
    choice, norm = _choose(seen.to(torch.int8), z, torch.bfloat16)
    padded = torch.nn.functional.pad(seen, (0, 2)).double()
    assert torch.equal(choice.double(), padded)
    truth = padded @ z.double()
    assert ((norm.double() - truth).abs() <= 2.0**-14 * truth).all()


@pytest.mark.parametrize("heads", [1, 2, 7, 12])
def test_chunks_are_equal_and_fit(heads):
    for scratch in range(1, 130, 7):
        step = linear.chunk(heads, 10, scratch)
        assert 1 <= step <= heads and (step == 1 or step * 10 <= scratch)
        assert -(-heads // step) == -(-heads // min(heads, max(1, scratch // 10)))


def test_method_in_triton(poison):
    """The whole method with its kernels equals the reference form in float32, text first."""
    grid = Grid(2, 4, 5, text=6, text_first=True)
    x = [t.float().to(DEVICE) for t in Problem.make(grid, batch=1).x]
    g = torch.Generator().manual_seed(1)
    shapes = {"proj_l.weight": (16, 16), "proj_l.bias": (16,)}
    learned = {n: torch.randn(s, generator=g).to(DEVICE) for n, s in shapes.items()}
    method = dit_sparse.get("sla", keep=0.3, negligible=0.3, block=(16, 16))
    outs = []
    for impl in ("reference", "triton"):
        ctx = dit_sparse.core.Context(grid=grid, impl=impl, weights=learned)
        outs.append(method(dit_sparse.core.QKV(*x), ctx))
    assert relative_error(outs[1], outs[0]) < 1e-5


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"phi": "exp"}, "phi must be one of softmax, elu, relu, got 'exp'"),
        ({"seen": (2, 3)}, r"seen must be bool \[1, 2, 5, 4\], got torch.bool \[1, 2, 3, 4\]"),
        ({"out": 60}, r"out must be \[1, 2, at least 75, 16\], got \[1, 2, 60, 16\]"),
        ({"kv": 0}, "kv_blocks must be a Cut or a block size of at least 1, got 0"),
        ({"join": 1}, "join must have a weight or alpha, got both"),
        ({"grad": 1}, "impl='triton' cannot run: the one-pass kernels have no backward"),
        ({"wide": 1}, "impl='triton' cannot run: the head dim is above 128"),
    ],
)
def test_bad_arguments(change, word):
    x = list(draw("ragged", torch.float32)[0])
    phi = change.get("phi", "softmax")
    if "seen" in change:
        x[4] = x[4][:, :, :3]
    if "out" in change:
        x[0] = x[0][:, :, :60]
    if "kv" in change:
        x[6] = 0
    if "join" in change:
        x[7] = Join(x[7].weight, alpha=torch.rand(1, HEADS, 5))
    if "grad" in change:
        x[1] = x[1].clone().requires_grad_()
    if "wide" in change:
        x[1], x[2] = (t.repeat(1, 1, 1, 9) for t in x[1:3])
    with pytest.raises(ValueError, match=word):
        add_linear(*x, phi=phi, impl="triton")
