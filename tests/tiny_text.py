"""Language models small enough to run in milliseconds, and the ways in which they are called."""

from dataclasses import replace

import torch
import transformers as host

import dit_sparse
from dit_sparse.core import Method
from dit_sparse.select.topk import TopK

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
TYPES = ["sliding_attention", "full_attention"]
# family -> further settings; reasons that `report` gives for its dense layers
FAMILIES = {
    "Llama": ({}, set()),
    "Qwen2": ({}, set()),
    "Qwen3": ({"head_dim": 8}, set()),
    "Mistral": ({"head_dim": 8, "sliding_window": None, "num_key_value_heads": 1}, set()),
    "Mistral sliding": ({"head_dim": 8, "sliding_window": 20}, {"sliding window"}),
    "Gemma": ({"head_dim": 16}, set()),
    "Gemma2": ({"head_dim": 8, "sliding_window": 20}, {"softcap of the logits", "sliding window"}),
    "Gemma3": ({"head_dim": 8, "sliding_window": 20, "layer_types": TYPES}, {"sliding window"}),
    "Phi": ({"num_key_value_heads": 4}, set()),
    "Phi3": ({}, set()),
    "GptOss": (
        {"head_dim": 8, "sliding_window": 20, "num_local_experts": 2, "num_experts_per_tok": 1},
        {"attention sinks", "sliding window"},
    ),
}
TOKENS, LEFT = 90, 23
# both sides are float64, but rotary angles and some norms are float32 in any case
BAND = 1e-6
DECODING = "decoding: the method is for prefill"


def whole() -> Method:
    """Return a method that runs its four stages and keeps every block."""
    return replace(dit_sparse.get("sla", block=(32, 16)), select=TopK(1.0))


def everywhere() -> Method:
    """Return such a method for the prefill and for decoding."""
    return replace(dit_sparse.get("blasst", block=(32, 16)), select=TopK(1.0))


def sparse() -> Method:
    return dit_sparse.get("sla", block=(32, 16), keep=0.3)


def build(family: str = "Llama", **settings):
    torch.manual_seed(0)
    name = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family.split()[0]}Config")
    config = getattr(host, name)(**{**SIZES, **FAMILIES[family][0], **settings})
    model = getattr(host, f"{family.split()[0]}ForCausalLM")(config).eval()
    # the eager attention of these takes its softmax in float32, to which float64's least number
    # is -inf: padded rows would be NaN
    return model if family in ("Gemma2", "GptOss") else model.double()


def left(ids):
    """Return a mask that pads the second sample on the left."""
    mask = torch.ones_like(ids)
    mask[1, :LEFT] = 0
    return mask


def chunked(model, ids, mask, cut=37):
    """Return the logits of a prefill in two chunks."""
    cache = host.DynamicCache(config=model.config)
    first = model(ids[:, :cut], attention_mask=mask[:, :cut], past_key_values=cache)
    rest = model(ids[:, cut:], attention_mask=mask, past_key_values=cache)
    return torch.cat((first.logits, rest.logits), 1)


def generate(model, ids, mask, **settings):
    settings = {"max_new_tokens": 3, "do_sample": False, "disable_compile": True, **settings}
    return model.generate(ids, attention_mask=mask, **settings)
