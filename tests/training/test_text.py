"""The demo's tokenizer: every caption survives it, and anything at all may be typed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from training import captions, world
from training.text import new_text_encoder, new_tokenizer
from training.wan import embed


@pytest.mark.parametrize("seed", range(10))
def test_captions_come_back_word_for_word(seed: int) -> None:
    rng = np.random.default_rng(seed)
    told = captions.caption(world.sample_scene(rng), rng)
    tokenizer = new_tokenizer()
    ids = tokenizer(told.upper() + "!").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == told.replace(",", "")
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids


@pytest.mark.parametrize(
    "text", ["", "   ", "42?!", "ein roter Kreis", "красный круг", "😀 circle"]
)
def test_any_text_is_accepted(text: str, tmp_path: Path) -> None:
    new_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(text, padding="max_length", max_length=16, truncation=True)
    assert len(tokens.input_ids) == 16
    real = sum(tokens.attention_mask)
    assert tokens.input_ids[real - 1] == tokenizer.eos_token_id
    assert set(tokens.input_ids[real:]) <= {0} and tokenizer.pad_token_id == 0


def test_unknown_words_do_not_hide_known_ones() -> None:
    tokenizer = new_tokenizer()
    ids = tokenizer("a shiny red circle").input_ids
    assert ids.count(tokenizer.unk_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red circle"


def test_embeddings_do_not_depend_on_the_padding() -> None:
    tokenizer = new_tokenizer()
    encoder = new_text_encoder(len(tokenizer)).eval()
    short, long = (
        tokenizer("a red star", padding="max_length", max_length=n, return_tensors="pt")
        for n in (8, 64)
    )
    with torch.no_grad():
        short_BND = embed(encoder, short.input_ids, short.attention_mask)
        long_BND = embed(encoder, long.input_ids, long.attention_mask)
    assert torch.allclose(short_BND, long_BND[:, :8], atol=1e-5)
    assert not long_BND[:, 4:].any()
