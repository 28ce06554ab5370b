"""What a language model says after a text: greedily, or at tokens that are given."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# so many queries behind a longer past still are a decoding step (integrations/transformers)
CHUNK = 16


@dataclass(frozen=True)
class Answer:
    """tokens: [B, new]. prefill, decoding: seconds; steps: passes of the decoding."""

    tokens: Tensor
    prefill: float
    decoding: float
    steps: int

    @property
    def rate(self) -> float:
        """Tokens of a sequence per second of decoding, 0 where there was no step."""
        return self.steps / self.decoding if self.steps else 0.0


@torch.no_grad()
def generate(model: Any, prompt: Tensor, new: int, stop: tuple[int, ...] = ()) -> Answer:
    """Return up to `new` greedy tokens after prompts [B, S] of one length.

    stop: tokens that end a sequence; all sequences end with the last of them.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    prompt, cache = prompt.to(device), DynamicCache(config=model.config)
    wait(device)
    begin = time.perf_counter()
    tokens = [last(model, prompt, cache).argmax(-1)]
    wait(device)
    middle, ended = time.perf_counter(), torch.zeros_like(tokens[0], dtype=torch.bool)
    while len(tokens) < new:
        if stop:
            ended |= torch.isin(tokens[-1], torch.tensor(stop, device=device))
            if bool(ended.all()):
                break
        tokens.append(last(model, tokens[-1][:, None], cache).argmax(-1))
    wait(device)
    end = time.perf_counter()
    found = torch.stack(tokens, 1).cpu()
    return Answer(found, middle - begin, end - middle, len(tokens) - 1)


@torch.no_grad()
def tail_logits(model: Any, tokens: Tensor, tail: int, decoding: bool) -> Tensor:
    """Return the logits [B, tail, V] that a model gives for the last `tail` tokens of texts [B, S].

    decoding: read them in decoding steps behind a prefill, for a method for decoding.
    """
    from transformers import DynamicCache

    given = tokens[:, :-1].to(next(model.parameters()).device)
    if not decoding:
        return model(given, use_cache=False, logits_to_keep=tail).logits.float()
    cache = DynamicCache(config=model.config)
    size = given.shape[1] - tail + 1
    parts = [last(model, given[:, :size], cache)[:, None]]
    for at in range(size, given.shape[1], CHUNK):
        chunk = given[:, at : at + CHUNK]
        parts.append(model(chunk, past_key_values=cache, use_cache=True).logits.float())
    return torch.cat(parts, 1)


def last(model: Any, tokens: Tensor, cache: Any) -> Tensor:
    """Return the logits [B, V] behind the last of tokens [B, S], and put these into the cache."""
    out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1].float()


def wait(device: torch.device) -> None:
    """Wait for a device, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
