"""The demo models' own tokenizer and text encoders, a very small UMT5 and a very small CLIP."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from training.captions import vocabulary

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"

#: Of the text encoders; two do not suffice to tell whose colour is whose.
LAYERS = 4

#: CLIP has learned positions for so many tokens; no caption is longer.
CLIP_TOKENS = 40


def new_tokenizer(text_tokens: int = 512) -> PreTrainedTokenizerFast:
    """A word tokenizer: lower case, letters only; a word outside the grammar becomes `<unk>`."""
    words = [PAD, EOS, UNKNOWN, *vocabulary()]
    core = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    core.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^\p{L}]+"), " "),
            normalizers.Strip(),
        ]
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, words.index(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=text_tokens,
        padding_side="right",
    )


def new_text_encoder(num_words: int, width: int = 128, layers: int = LAYERS) -> UMT5EncoderModel:
    """A small UMT5 encoder with fresh weights, no dropout."""
    return UMT5EncoderModel(UMT5Config(**_t5_settings(num_words, width, layers)))


def new_t5_encoder(num_words: int, width: int = 128, layers: int = LAYERS) -> T5EncoderModel:
    """The same as T5, whose layers share how far apart tokens are."""
    settings = _t5_settings(num_words, width, layers)
    return T5EncoderModel(T5Config(**settings, feed_forward_proj="gated-gelu"))


def _t5_settings(num_words: int, width: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": num_words,
        "d_model": width,
        "d_kv": 32,
        "d_ff": 2 * width,
        "num_layers": layers,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": False,
    }


def new_clip_encoder(
    num_words: int, width: int = 128, layers: int = LAYERS, positions: int = CLIP_TOKENS
) -> CLIPTextModel:
    """A small CLIP text encoder with fresh weights, no dropout."""
    config = CLIPTextConfig(
        vocab_size=num_words,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=positions,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return CLIPTextModel(config)
