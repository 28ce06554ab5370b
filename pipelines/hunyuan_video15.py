"""HunyuanVideo 1.5: a joint sequence; behind the video stand image, glyph and text tokens, padding
last. Its own processor builds a mask [B, 1, S, S] in every layer; ours passes the keys' on."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, T, H, W]; image and two texts [B, S, C] come behind it."""
    behind = ("image_embeds", "encoder_hidden_states_2", "encoder_hidden_states")
    return *volume(module, given)[:3], 0, sum(given[name].shape[1] for name in behind)


def key_masked(original: Any) -> Any:
    """Return a processor like `original` whose mask is [B, 1, 1, S]."""
    processor = _subclass(type(original))()
    vars(processor).update(vars(original))
    return processor


@functools.cache
def _subclass(host: type) -> type:
    from diffusers.models.attention_dispatch import dispatch_attention_fn
    from diffusers.models.embeddings import apply_rotary_emb

    turn: Any = apply_rotary_emb

    class KeyMasked(host):
        """What padding attends to is not the original's, but nobody reads it."""

        def __call__(
            self,
            attn: Any,
            hidden_states: Tensor,
            encoder_hidden_states: Tensor,
            attention_mask: Tensor,
            image_rotary_emb: Any = None,
        ) -> tuple[Tensor, Tensor]:
            video, missing = hidden_states.shape[1], hidden_states.shape[1]
            missing += encoder_hidden_states.shape[1] - attention_mask.shape[1]
            q, k, v = (m(hidden_states) for m in (attn.to_q, attn.to_k, attn.to_v))
            q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
            q, k = attn.norm_q(q), attn.norm_k(k)
            if image_rotary_emb is not None:
                q, k = (turn(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
            projections = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
            text = [m(encoder_hidden_states).unflatten(2, (attn.heads, -1)) for m in projections]
            if attn.norm_added_q is not None:
                text[:2] = attn.norm_added_q(text[0]), attn.norm_added_k(text[1])
            qkv = [torch.cat(pair, dim=1) for pair in zip((q, k, v), text, strict=True)]
            out = dispatch_attention_fn(
                *qkv,
                attn_mask=F.pad(attention_mask.bool(), (missing, 0), value=True)[:, None, None],
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )
            out = out.flatten(2, 3).to(q.dtype)
            hidden_states = attn.to_out[1](attn.to_out[0](out[:, :video]))
            return hidden_states, attn.to_add_out(out[:, video:])

    return KeyMasked


ADAPTERS = (
    Adapter(
        classes=("HunyuanVideo15Transformer3DModel",),
        attention=r"transformer_blocks\.\d+\.attn",
        sizes=latent_sizes,
        mask="keys",
        processor=key_masked,
        text="suffix",
        needs="0.36.0",
    ),
)

PIPELINES = {
    "SparseHunyuanVideo15Pipeline": "HunyuanVideo15Pipeline",
    "SparseHunyuanVideo15ImageToVideoPipeline": "HunyuanVideo15ImageToVideoPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
