"""The model `needle` as files of transformers: configuration, weights, tokenizer, record."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dit_sparse.haystack import ID, SPECIAL, VOCABULARY

# texts of 16,384 tokens, and an answer
LONGEST = 16384 + 128


def config() -> LlamaConfig:
    """Return the configuration."""
    return LlamaConfig(
        # a multiple that matrix units like
        vocab_size=-(-len(VOCABULARY) // 32) * 32,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=LONGEST,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=ID["<s>"],
        eos_token_id=ID["."],
        pad_token_id=ID["<pad>"],
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: a token for each word and mark, <s> before a text."""
    core = Tokenizer(models.WordLevel(dict(ID), unk_token="<unk>"))
    # "davu." is a word and a full stop
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ID["<s>"])]
    )
    pad, bos, unk = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        pad_token=pad,
        unk_token=unk,
        padding_side="left",
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
    )


def write(state: dict[str, Tensor], record: dict[str, Any], folder: Path) -> None:
    """Write all files, weights in bfloat16."""
    settings = config()
    model = LlamaForCausalLM(settings)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=ID["<s>"], eos_token_id=ID["."], pad_token_id=ID["<pad>"], do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
