"""Train SeerAttention's gate of `needle`: seconds on a GPU, the model itself stays as it is.

    python demos/train_needle/gate.py --texts 32 --length 8192

Learns for each layer the block map of `block_max_map` from pooled queries and keys, on texts as
`train.py` has them, from the product of block means on. The model runs once per text; what it
showed is pooled and kept, and all steps learn from that.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.monotonic()

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

from dit_sparse.core import QKV  # noqa: E402
from dit_sparse.haystack import TASKS, Counts, texts  # noqa: E402
from dit_sparse.integrations import transformers as host  # noqa: E402
from dit_sparse.kernels.pool import pool_blocks  # noqa: E402
from dit_sparse.score.seer import block_max_map, extremes, rotate  # noqa: E402

BLOCK, RATE = 64, 3e-3
MODEL = Path(__file__).resolve().parents[2] / "dit_sparse" / "models" / "needle"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the model")
    parser.add_argument("--out", type=Path, default=MODEL / "seer.safetensors")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--length", type=int, default=8192, help="tokens of a text")
    parser.add_argument("--steps", type=int, default=400)
    return parser.parse_args()


def start(config: Any, device: str) -> list[dict[str, Tensor]]:
    """Return for each layer the gate that is the product of block means."""
    heads, groups, dim = (
        config.num_attention_heads, config.num_key_value_heads, config.head_dim
    )  # fmt: skip
    one = torch.eye(dim, device=device)
    freq = config.rope_parameters["rope_theta"] ** (
        -torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    )
    return [
        {
            "gate_q.weight": one.expand(heads, dim, dim).clone().requires_grad_(),
            # of the largest, the least and the mean
            "gate_k.weight": torch.cat((0 * one, 0 * one, one))
            .expand(groups, -1, -1)
            .clone()
            .requires_grad_(),
            "inv_freq": freq.clone(),
        }
        for _ in range(config.num_hidden_layers)
    ]


@torch.no_grad()
def shown(x: QKV, freq: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return block means of queries [B, H, M, D], largest, least and mean keys [B, Hkv, N, 3 D],
    both before their rotation, and the map to learn [B, H, M, N].
    """
    place = torch.arange(x.q.shape[2], device=x.q.device)
    q, k = (rotate(t.float(), place, -freq) for t in (x.q, x.k))
    rows, cols = (pool_blocks(t, BLOCK) for t in (q, k))
    return rows, torch.cat((*extremes(k, BLOCK), cols), -1), block_max_map(x, BLOCK)


def gate(rows: Tensor, cols: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Return the logarithm of the gate [B, H, M, N] of pooled queries and keys, as `SeerGate`."""
    place = BLOCK * torch.arange(rows.shape[2], device=rows.device)
    vectors = [
        rotate(torch.einsum("bhmd,hdg->bhmg", t, weights[name]), place, weights["inv_freq"])
        for t, name in ((rows, "gate_q.weight"), (cols, "gate_k.weight"))
    ]
    q, k = vectors[0], vectors[1].repeat_interleave(rows.shape[1] // cols.shape[1], 1)
    logits = q @ k.mT / q.shape[-1] ** 0.5
    future = torch.ones_like(logits[0, 0], dtype=torch.bool).triu(1)
    return logits.masked_fill(future, float("-inf")).log_softmax(-1)


def divergence(seen: tuple[Tensor, Tensor, Tensor], weights: dict[str, Tensor]) -> Tensor:
    """Return the mean KL divergence of a gate from the map that it learns."""
    rows, cols, goal = seen
    found = gate(rows, cols, weights).clamp(min=-30)
    return (torch.special.xlogy(goal, goal) - goal * found).sum(-1).mean()


def main() -> None:
    options = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = LlamaForCausalLM.from_pretrained(options.model, dtype=dtype).to(device).eval()
    gates = start(model.config, device)
    optimiser = torch.optim.Adam([w for g in gates for w in g.values() if w.requires_grad], lr=RATE)
    generator = torch.Generator(device).manual_seed(3)
    share = options.length / 16384
    asked = dict(zip(TASKS, (8, 1, 2), strict=True))
    counts = Counts(max(8, int(128 * share)), max(2, int(12 * share)), asked)
    seen: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in gates]
    for _ in range(options.texts):
        tokens = texts(1, options.length, counts, generator).tokens
        for n, x in host.tensors(model, tokens).items():
            seen[n].append(shown(x, gates[n]["inv_freq"]))
    say(f"{options.texts} texts of {options.length:,} tokens seen")
    for step in range(options.steps):
        warm, fall = min(1.0, (step + 1) / 10), 1.02 - step / options.steps
        optimiser.param_groups[0]["lr"] = RATE * warm * fall
        losses = [
            divergence(rows[step % len(rows)], g) for rows, g in zip(seen, gates, strict=True)
        ]
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        optimiser.step()
        if step % max(1, options.steps // 8) == 0 or step == options.steps - 1:
            say(f"step {step}, divergence by layer " + " ".join(f"{x.item():.3f}" for x in losses))
    tensors = {
        f"{n}.{name}": weight.detach().cpu().contiguous()
        for n, weights in enumerate(gates)
        for name, weight in weights.items()
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, options.out)
    say(f"written: {options.out}, {options.out.stat().st_size / 1e6:.1f} MB")


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f}s] {text}", flush=True)


if __name__ == "__main__":
    main()
