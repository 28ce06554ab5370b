"""The README's lines for three families, run as they stand on whole pipelines from a folder."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

import dit_sparse
from tests.probe import quiet
from tests.tiny_wan import tiny_wan

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
LINES = re.findall(r"^pipe = dit_sparse\.pipelines\.load\([^)]*\)\.to\([^)]*\)$", README, re.M)
WORDS = ["<pad>", "</s>", "<unk>", "a", "cat", "on", "skateboard"]


def tokenizer(length):
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=length,
    )  # fmt: skip


def clip():
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, projection_dim=16, eos_token_id=1, pad_token_id=0, bos_token_id=2,
    )  # fmt: skip
    return {"text_encoder": CLIPTextModel(config).eval(), "tokenizer": tokenizer(77)}


def tiny_flux():
    t5 = T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    second = {"text_encoder_2": T5EncoderModel(t5).eval(), "tokenizer_2": tokenizer(16)}
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(),
        AutoencoderKL(
            block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            shift_factor=0.0, scaling_factor=1.0,
        ).eval(),
        **clip(), **second,
        transformer=FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
            axes_dims_rope=(4, 6, 6), guidance_embeds=True,
        ).eval(),
    )  # fmt: skip


def tiny_hunyuan():
    llama = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=2,
    )  # fmt: skip
    second = clip()
    return HunyuanVideoPipeline(
        LlamaModel(llama).eval(), tokenizer(256),
        HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16,
            num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1,
            guidance_embeds=True, text_embed_dim=16, pooled_projection_dim=16,
            rope_axes_dim=(4, 6, 6),
        ).eval(),
        AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
            norm_num_groups=4,
        ).eval(),
        FlowMatchEulerDiscreteScheduler(),
        second["text_encoder"], second["tokenizer"],
    )  # fmt: skip


# the words around a prompt that the pipeline would cut off again are not in this vocabulary
TEMPLATE = {"prompt_template": {"template": "{}", "crop_start": 0}}
# whose line; the pipeline; what it is asked for
FAMILIES = [
    ("Wan-AI", tiny_wan, {"height": 64, "width": 64, "num_frames": 13, "max_sequence_length": 8}),
    ("hunyuanvideo", tiny_hunyuan, {"height": 64, "width": 64, "num_frames": 13, **TEMPLATE}),
    ("black-forest-labs", tiny_flux, {"height": 64, "width": 96, "max_sequence_length": 8}),
]


@pytest.mark.parametrize(("who", "make", "size"), FAMILIES, ids=["wan", "hunyuan", "flux"])
def test_one_line_of_the_readme(who, make, size, tmp_path):
    torch.manual_seed(0)
    quiet(make()).save_pretrained(tmp_path / "model")
    (line,) = [line for line in LINES if who in line]
    line = re.sub(r'"[\w.-]+/[\w.-]+"', repr(str(tmp_path / "model")), line)
    names = {"dit_sparse": dit_sparse}
    exec(line.replace('"cuda"', '"cpu"'), names)
    pipe = quiet(names["pipe"])

    def video(pipe):
        seeded = torch.Generator().manual_seed(0)
        asked = {"num_inference_steps": 4, "output_type": "latent", "generator": seeded, **size}
        return pipe("a cat on a skateboard", **asked)[0]

    out = video(pipe)
    found = dit_sparse.report(pipe)
    assert out.isfinite().all() and found.sparse_calls > 0 and found.density < 1
    # saved, it comes back as it is
    pipe.save_pretrained(tmp_path / "saved")
    again = quiet(dit_sparse.pipelines.load(tmp_path / "saved"))
    assert torch.equal(video(again), out) and dit_sparse.report(again).density == found.density
    dit_sparse.disable(pipe)
    assert not torch.equal(video(pipe), out)
