"""Scores between block means in one launch, against their formula in float64."""

import pytest
import torch

from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.scores import pooled_scores, products
from tests.kernel_cases import BOTH, DEVICE, offsets

pytestmark = pytest.mark.usefixtures("poison")
# fmt: off
ROWS = {
    "product": {},
    "scaled": {"scale": 0.3},
    "sizes": {"cut": Cut(8), "tokens": 531},
    "unequal sizes": {"cut": Cut(40, offsets([7, 0, 40, 1, 19], 4)), "n": 5},
    "weights": {"weight": 1, "eps": 1e-5},
    "weights of each head": {"weight": 2},
    "softmax": {"softmax": True},
    "softmax of sizes, empty ones too": {"cut": Cut(40, offsets([7, 0, 40, 1, 19])), "n": 5,
        "softmax": True},
    "text takes its share": {"cut": Cut(8), "tokens": 531, "softmax": True, "text": 70},
}
# fmt: on


def formula(q, k, scale=None, cut=None, tokens=0, weight=None, eps=0.0, text=None, softmax=False):
    """Return the scores pair of heads by pair of heads."""
    q, k = q.double(), k.double()
    group = q.shape[1] // k.shape[1]
    out = torch.empty(*q.shape[:3], k.shape[2], dtype=torch.float64, device=q.device)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            s = scale * q[b, h] @ k[b, h // group].T
            if cut is not None and cut.offsets is None:
                sizes = [min(cut.size, tokens - j * cut.size) for j in range(k.shape[2])]
                s = s + torch.tensor(sizes, device=q.device).double().log()
            elif cut is not None:
                s = s + cut.offsets.expand(2, 4, -1)[b, h].diff().double().log()
            if weight is not None:
                s = s + (weight.expand(2, 2, -1)[b, h // group].double() + eps).log()
            if text is not None:
                s = torch.cat((s, scale * q[b, h] @ text[b, h // group].double().T), -1)
            out[b, h] = (s.softmax(-1) if softmax else s)[:, : k.shape[2]]
    return out


@BOTH
@pytest.mark.parametrize("name", ROWS)
def test_scores(name, impl):
    """Any head count, rows that fill no tile, more key blocks than one tile."""
    row = dict(ROWS[name])
    n = row.pop("n", 67)
    q, k = torch.randn(2, 4, 19, 40, device=DEVICE), torch.randn(2, 2, n, 40, device=DEVICE)
    if "weight" in row:
        row["weight"] = torch.rand(2 if row["weight"] > 1 else 1, row["weight"], n, device=DEVICE)
    if "text" in row:
        row["text"] = torch.randn(2, 2, row["text"], 40, device=DEVICE).bfloat16()
    got, want = pooled_scores(q, k, impl=impl, **row), formula(q, k, **row)
    assert got.dtype == torch.float32 and torch.equal(got.isinf(), want.isinf())
    finite = ~want.isinf()
    # a product of 40 float32 numbers, each rounded, and a sum of three terms
    bound = 48 * torch.finfo(torch.float32).eps * want[finite].abs().max().clamp(min=4)
    assert (got[finite].double() - want[finite]).abs().max() < bound


def test_float64_and_gradients_take_torch():
    q = torch.randn(1, 2, 3, 16, dtype=torch.float64, requires_grad=True)
    out = pooled_scores(q, q.detach(), softmax=True)
    assert out.dtype == torch.float64
    assert torch.autograd.grad(out[..., 0].sum(), q)[0].abs().sum() > 0
    with pytest.raises(ValueError, match="text must be None"):
        pooled_scores(q, q, text=q)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_products_of_any_dtype(dtype, kv_heads):
    """Logits are as exact as sums of float32, and beyond what float16 holds."""
    q, k = (torch.randn(2, n, m, 64, device=DEVICE).to(dtype) for n, m in ((4, 9), (kv_heads, 30)))
    q[..., :4] += 60
    k[..., :4] += 60
    found = products(q, k)
    truth = q.double() @ k.double().repeat_interleave(4 // kv_heads, 1).mT
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    # 64 terms of up to 64^2, summed in single precision
    assert (found - truth).abs().max() < 64 * 64**2 * 2.0**-23
