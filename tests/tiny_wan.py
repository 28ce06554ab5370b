"""A Wan pipeline of real classes and random weights, small enough to test the whole command."""

import json
from pathlib import Path

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = ["a", "on", "over", "red", "blue", "circle", "square", "moves", "right", "background"]
TRAINED = {
    "sizes": [[64, 64], [64, 96]],
    "frames": [1, 5, 9],
    "default": {
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "max_sequence_length": 12,
    },
    "fps": 8,
    "vocabulary": WORDS,
}


def tiny_wan() -> WanPipeline:
    """Build the pipeline: 2 layers, 2 heads of 16, VAE 8 x 8 x 4."""
    ids = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return WanPipeline(
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=len(ids), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ).eval(),
        vae=AutoencoderKLWan(
            base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1, z_dim=4,
            temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ).eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        transformer=WanTransformer3DModel(
            patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=16, in_channels=4,
            out_channels=4, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2,
            cross_attn_norm=True, rope_max_seq_len=64,
        ).eval(),
    )  # fmt: skip


def save(folder: Path, trained: dict | None = TRAINED) -> Path:
    """Save the pipeline as a model folder, with what it was trained for."""
    tiny_wan().save_pretrained(folder)
    if trained is not None:
        (folder / "trained.json").write_text(json.dumps(trained))
    return folder
