"""The parts of the pipeline: real diffusers and transformers classes, their sizes, their first
weights, the export.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from captions import END, PAD, SPECIAL, UNKNOWN, WORDS
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from dit_sparse.world import NAMES, VOCABULARY

FPS, TEXT_LENGTH = 8, 64
SIZES = ((128, 128), (96, 160), (160, 96))  # height, width
FRAMES = (33, 17)
DEFAULT = {"height": 128, "width": 128, "num_frames": 33}

TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 1, 1),
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "num_layers": 8,
    "ffn_dim": 768,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 128,
    "freq_dim": 256,
    "cross_attn_norm": True,
    "rope_max_seq_len": 256,
}
VAE: dict[str, Any] = {
    "base_dim": 32,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "z_dim": 16,
    "is_residual": True,
    "patch_size": 2,
    # patchified: 3 * patch_size ** 2
    "in_channels": 12,
    "out_channels": 12,
    # 2 ** (levels - 1) * patch_size; the pipeline reads it, nothing checks it
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
}
TEXT: dict[str, Any] = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 3,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
}


def smoke_sizes() -> None:
    """Shrink the networks, for a run that only proves that the code works."""
    TRANSFORMER.update(num_layers=2, ffn_dim=256)
    VAE.update(base_dim=8)


def text_encoder() -> UMT5EncoderModel:
    """Make the encoder with the library's own init: T5 attention has no 1/sqrt(d), so the init
    carries it.
    """
    config = UMT5Config(
        vocab_size=len(WORDS),
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        **TEXT,
    )
    return UMT5EncoderModel(config)


def tokenizer() -> PreTrainedTokenizerFast:
    """Make the word tokenizer; every text ends with the end token, so an empty one is not all
    zeros.
    """
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=SPECIAL[UNKNOWN]))
    words.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # drop punctuation, then split at white space
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    end = SPECIAL[END]
    words.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=SPECIAL[PAD],
        eos_token=end,
        unk_token=SPECIAL[UNKNOWN],
        model_max_length=512,
        padding_side="right",
    )


def vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(**VAE)


def transformer() -> WanTransformer3DModel:
    """Make the transformer: Xavier matrices, small embedders, zero output."""
    model = WanTransformer3DModel(**TRANSFORMER)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if name.startswith("condition_embedder"):
                nn.init.normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(
        model.patch_embedding.weight.view(model.patch_embedding.out_channels, -1)
    )
    nn.init.zeros_(model.patch_embedding.bias)
    nn.init.zeros_(model.proj_out.weight)
    return model


def pipeline(
    parts: dict[str, dict[str, Tensor]],
    mean: list[float],
    std: list[float],
    device: str | torch.device = "cpu",
) -> WanPipeline:
    """Put trained weights (keys `text`, `vae`, `transformer`) into a pipeline of stock classes,
    fp32.
    """
    text, coder, model = (
        text_encoder(),
        AutoencoderKLWan(**VAE, latents_mean=mean, latents_std=std),
        transformer(),
    )
    text.load_state_dict(parts["text"])
    coder.load_state_dict(parts["vae"])
    model.load_state_dict(parts["transformer"])
    made = WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=text.eval().to(device),
        vae=coder.eval().to(device),
        transformer=model.eval().to(device),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=3.0,
            num_train_timesteps=1000,
        ),
    )
    made.set_progress_bar_config(disable=True)
    return made


def export(made: WanPipeline, folder: Path, *, steps: int, guidance: float) -> None:
    """Save a pipeline in bf16 safetensors, with what it was trained for in trained.json; changes
    it to bf16.
    """
    for part in (made.text_encoder, made.vae, made.transformer):
        for p in part.parameters():
            p.data = p.data.to(torch.bfloat16)
    # the config's dtype is what a loader without an explicit dtype takes
    made.text_encoder.config.dtype = torch.bfloat16
    made.save_pretrained(folder, safe_serialization=True)
    sizes, colours, shapes, motions, patterns, _ = NAMES
    trained = {
        "sizes": [list(size) for size in SIZES],
        "frames": sorted(FRAMES),
        "default": {
            **DEFAULT,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "max_sequence_length": TEXT_LENGTH,
        },
        "fps": FPS,
        "vocabulary": list(VOCABULARY),
        "attributes": {
            "size": [s for s in sizes if s],
            "colour": list(colours),
            "shape": list(shapes),
            "motion": list(motions),
            "pattern": list(patterns),
        },
        "prompt": "a large red circle moves right over a striped blue background",
    }
    (folder / "trained.json").write_text(json.dumps(trained, indent=1) + "\n")


def embed(encoder: UMT5EncoderModel, ids: Tensor) -> Tensor:
    """Encode token ids [B, L] as the pipeline does: zero rows behind the real text. -> [B, L, C]"""
    mask = ids != PAD
    return encoder(ids, mask.long()).last_hidden_state * mask[..., None]


def parameters(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the PSNR of every clip of two batches in 0..1."""
    return -10 * (a.float() - b.float()).square().flatten(1).mean(1).clamp_min(1e-10).log10()


def finite(value: float) -> bool:
    return not (math.isnan(value) or math.isinf(value))
