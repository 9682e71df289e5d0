"""What is said where a model's parts are loaded."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from workers.families import open_family
from workers.families.loading import load_plain
from workers.quiet import quiet_libraries


def test_a_config_that_says_what_nobody_reads_is_told(
    tiny_wan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quiet_libraries()
    logger = logging.getLogger("diffusers.configuration_utils")
    logger.addHandler(caplog.handler)
    try:
        folder = shutil.copytree(tiny_wan, tmp_path / "wan")
        assert open_family("wan", str(folder), "float32", "cpu").denoiser and not caplog.text
        path = folder / "transformer" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sparse": True, "_note": 1}))
        assert open_family("wan", str(folder), "float32", "cpu").denoiser
    finally:
        logger.removeHandler(caplog.handler)
    assert "{'sparse': True} were passed to WanTransformer3DModel, but are not exp" in caplog.text


TEXT = [
    "a red fox runs over the snow",
    "the fox rests; snow falls, slowly",
    "over a red hill: a fox",
]


def llama_3(folder: Path) -> Tokenizer:
    """Byte-level, and spaces belong to words, under the class that HunyuanVideo's folder names."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<pad>"]
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], 0)]
    )
    told = {
        "tokenizer_class": "LlamaTokenizerFast",
        "bos_token": special[0],
        "eos_token": special[1],
        "pad_token": special[2],
    }
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return tokenizer


def test_a_file_of_tokens_is_read_as_it_stands(tmp_path: Path) -> None:
    right = llama_3(tmp_path / "llama")
    loaded = load_plain(transformers.LlamaTokenizerFast, tmp_path / "llama")
    for text in (*TEXT, "the snow  rests 🦊"):
        assert loaded(text).input_ids == right.encode(text).ids
    ids = right.encode(TEXT[0]).ids
    padded = loaded(TEXT[0], padding="max_length", max_length=len(ids) + 2).input_ids
    assert padded == [2, 2, *ids], "as the class pads, where its file does not say"


def test_padding_is_on_the_side_that_the_file_says(tmp_path: Path) -> None:
    llama_3(tmp_path / "llama")
    path = tmp_path / "llama" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "right"}))
    loaded = load_plain(transformers.LlamaTokenizerFast, tmp_path / "llama")
    assert loaded("fox", padding="max_length", max_length=40).input_ids[-1] == 2


def test_t5s_published_tokenizer_is_read_without_a_file_of_tokens(tmp_path: Path) -> None:
    """LTX-Video and CogVideoX are published with ``spiece.model`` alone."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=30,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    told = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    loaded = load_plain(transformers.T5Tokenizer, tmp_path)
    right = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    for text in TEXT:
        assert loaded(text).input_ids == [*right.encode(text), 1]
