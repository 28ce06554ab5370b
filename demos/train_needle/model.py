"""The arithmetic of `LlamaForCausalLM` for training: fewer launches, and none of the caches."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig


def logits(state: Mapping[str, Tensor], config: LlamaConfig, tokens: Tensor) -> Tensor:
    """Return logits [B, S, V] of tokens [B, S]; products in bfloat16 on a GPU.

    state: parameters of `LlamaForCausalLM` by name.
    """
    half = torch.bfloat16 if tokens.is_cuda else torch.float32
    heads, groups, dim = (
        config.num_attention_heads, config.num_key_value_heads, config.head_dim
    )  # fmt: skip
    cos, sin = angles(tokens.shape[1], dim, config.rope_parameters["rope_theta"], tokens.device)
    cos, sin = cos.to(half), sin.to(half)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"].to(half))

    def norm(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.rms_norm(x, weight.shape, weight, config.rms_norm_eps).to(half)

    x = F.embedding(tokens, state["model.embed_tokens.weight"])
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        y = norm(x, f"{name}.input_layernorm")
        q, k, v = (
            linear(y, f"{name}.self_attn.{part}_proj").unflatten(2, (count, dim)).transpose(1, 2)
            for part, count in (("q", heads), ("k", groups), ("v", groups))
        )
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + linear(y.transpose(1, 2).flatten(2), f"{name}.self_attn.o_proj")
        y = norm(x, f"{name}.post_attention_layernorm")
        gate, up = (linear(y, f"{name}.mlp.{part}_proj") for part in ("gate", "up"))
        x = x + linear(F.silu(gate) * up, f"{name}.mlp.down_proj")
    return F.linear(norm(x, "model.norm"), state["model.embed_tokens.weight"].to(half))


def angles(length: int, dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [S, D] of the positions."""
    exponent = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    place = torch.arange(length, device=device, dtype=torch.float32)
    angle = (place[:, None] * theta**-exponent).repeat(1, 2)
    return angle.cos(), angle.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, S, D] by halves."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin
