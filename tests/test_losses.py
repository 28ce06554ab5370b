"""What masks lose on sampled queries: the kernel's forms against the formula in float64."""

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.core import QKV, Context
from dit_sparse.kernels import _losses
from dit_sparse.kernels.losses import masked_losses, pack_keys
from tests.kernel_cases import BOTH, DEVICE, normal

HALF, SINGLE = torch.bfloat16, torch.float32


def draw(
    batch=1, heads=1, kv_heads=1, tokens=300, count=5, dim=16, dim_v=16, gain=1.0, dtype=None
):  # fmt: skip
    """Return q, k, v with margins of NaN, the sampled rows, and two masks [2, R, S]."""
    shapes = (heads, dim), (kv_heads, dim), (kv_heads, dim_v)
    x = [normal(batch, tokens + 8, h, d + 8, seed=i) for i, (h, d) in enumerate(shapes)]
    x[0] *= gain
    for i, (_, d) in enumerate(shapes):
        whole = torch.full_like(x[i], float("nan"), dtype=dtype)
        whole[:, 4:-4, :, :d] = x[i][:, 4:-4, :, :d]
        x[i] = whole[:, 4:-4, :, :d].transpose(1, 2)
    rows = torch.randperm(tokens)[:count].to(DEVICE)
    seen = torch.rand(2, count, tokens, device=DEVICE) < 0.3
    # a query that sees nothing, one whose keys all lie in the last chunk, one that sees everything
    seen[0, 0], seen[1, 1], seen[1, 2] = False, torch.arange(tokens, device=DEVICE) > tokens - 3, 1
    return (*x, rows), seen


def oracle(q, k, v, rows, seen, scale=None):
    """Return the losses by their formula, and how far rounding the weights may move their roots.

    Weights of which each is off by a share u move an output by no more than u * softmax @ |v|, and
    the root of a mean square, a norm, by no more than what its vector moves.
    """
    dtype = q.dtype
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    logits = q[:, :, rows] @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    hidden = logits.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))[:, None, None]
    p = torch.stack([logits, *(logits + hidden)]).softmax(-1).nan_to_num(0)
    out, moved = p @ v, p @ v.abs()
    # the weights are rounded to v's dtype; the float32 beneath them adds up D and S terms
    single = torch.finfo(SINGLE).eps * (q.shape[-1] * logits.abs().max() + k.shape[2])
    share = single if dtype == torch.float32 else torch.finfo(dtype).eps + single
    bound = share * (moved[1:] + moved[:1])
    return ((out[1:] - out[:1]).square().mean((-2, -1)), bound.square().mean((-2, -1)).sqrt())


ROWS = {
    "plain": {},
    "grouped heads": {"batch": 2, "heads": 4, "kv_heads": 2, "tokens": 90, "count": 3},
    "two tiles of queries, two of values": {"count": 66, "dim_v": 72, "dim": 24, "tokens": 100},
    "short": {"tokens": 5, "count": 4},
    "whole tiles, many chunks": {"tokens": 512},
    "sharp": {"gain": 30.0},
}


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(
    ("name", "dtype"), [(name, HALF) for name in ROWS] + [("plain", SINGLE), ("sharp", torch.half)]
)
def test_kernel_equals_the_formula(name, dtype):
    x, seen = draw(**ROWS[name], dtype=dtype)
    truth, bound = oracle(*x, seen)
    losses = masked_losses(*x, pack_keys(seen), impl="triton")
    assert losses.shape == truth.shape and losses.dtype == SINGLE
    assert ((losses.double().sqrt() - truth.sqrt()).abs() <= bound).all()
    # a bound that lets everything pass would show nothing
    assert (bound < 0.2 * truth.sqrt()).all()


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", ROWS)
def test_torch_form_is_the_formula(name):
    x, seen = draw(**ROWS[name])
    for impl, scale in (("torch", None), ("reference", 0.3), ("auto", None)):
        losses = masked_losses(*x, pack_keys(seen), scale=scale, impl=impl)
        torch.testing.assert_close(losses, oracle(*x, seen, scale)[0], rtol=1e-12, atol=1e-14)


@BOTH
def test_chunks_change_no_loss(impl, monkeypatch):
    """One chunk or many: the parts merge to the same losses."""
    x, seen = draw(tokens=150, count=3, dtype=SINGLE)
    whole, bound = oracle(*x, seen, 0.7)
    for programs in (1, 2, 100):
        monkeypatch.setattr(_losses, "PROGRAMS", programs)
        monkeypatch.setattr(_losses, "TILES", 1)
        losses = masked_losses(*x, pack_keys(seen), scale=0.7, impl=impl)
        assert ((losses.double().sqrt() - whole.sqrt()).abs() <= bound).all()
        assert torch.equal(losses, masked_losses(*x, pack_keys(seen), scale=0.7, impl=impl))


@BOTH
def test_masks_that_show_all_lose_nothing(impl):
    """And those that show nothing lose the whole output."""
    x, seen = draw(dtype=SINGLE)
    seen[0], seen[1] = True, False
    losses = masked_losses(*x, pack_keys(seen), impl=impl)
    out = torch.nn.functional.scaled_dot_product_attention(*x[:3])[:, :, x[3]]
    # the two sums may be rounded in another order
    rounding = 8 * torch.finfo(SINGLE).eps
    assert losses[0].max() <= (rounding * out.abs().max()) ** 2
    torch.testing.assert_close(losses[1], out.square().mean((-2, -1)))


@pytest.mark.parametrize("tokens", [1, 31, 32, 64, 65, 200])
def test_bits_are_the_keys(tokens):
    seen = torch.rand(3, tokens) < 0.5
    words = pack_keys(seen)
    at = torch.arange(words.shape[-1] * 32)
    bits = words[:, at // 32] >> at % 32 & 1
    assert torch.equal(bits[:, :tokens].bool(), seen) and not bits[:, tokens:].any()


@pytest.mark.parametrize("grid", [Grid(5, 4, 4), Grid(5, 4, 4, 7, True)], ids=str)
def test_the_choice_is_the_formulas(grid):
    """Wherever the two losses differ by more than rounding, svg takes the order that loses less."""
    token = torch.arange(grid.video)
    codes = {"F": token // 16, "P": token % 16}
    # a head attends to its own frame or to its own patch, more or less sharply
    q = torch.stack([torch.eye(16, dtype=torch.float64)[codes[kind]] for kind in "FPPF"])
    q = q * torch.tensor([6.0, 6.0, 3.0, 0.0])[:, None, None]
    ends = (0, 0, grid.text, 0)
    q, v = torch.nn.functional.pad(q, ends).to(DEVICE, HALF)[None], normal(1, 4, grid.tokens, 16)
    x, at = QKV(q, q, v.to(HALF)), {"grid": grid, "step": 3, "steps": 10}
    arrange = dit_sparse.get("svg", keep=0.5, block=8, rows=10).arrange
    frame, patch = arrange.losses(QKV(*(t.double() for t in x)), Context(**at)).sqrt()
    # both outputs of a difference are off by the rounding of the weights times the values at most
    bound = 2 * 2 * torch.finfo(HALF).eps * x.v.double().abs().amax((-2, -1))
    clear = (frame - patch).abs() > bound
    order = arrange(x, Context(**at, impl="triton")).q.order
    # the second token of a token-major order is in the next frame
    turned = order[..., 1] != order[..., 0] + 1
    assert clear[0, :2].all() and turned[0, :2].tolist() == [False, True]
    assert torch.equal(turned[clear], (patch < frame)[clear])


def test_errors_name_what_is_wrong():
    x, seen = draw()
    words = pack_keys(seen)
    q, k, v, rows = x
    for name, call in {
        "q": (q[0], k, v, rows, words),
        "k": (q, k[:, :, :, :8], v, rows, words),
        "v": (q, k, v[:, :, 1:], rows, words),
        "rows": (q, k, v, rows.int(), words),
        "seen": (q, k, v, rows, seen),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be"):
            masked_losses(*call)
    with pytest.raises(ValueError, match=r"^scale must be"):
        masked_losses(*x, words, scale=0.0)
    with pytest.raises(ValueError, match=r"^q must not be float64"):
        masked_losses(*x, words, impl="triton")
