"""The text encoder learns to read, and goes on from one that can read already."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from training import reading
from training.text import LAYERS, new_text_encoder, new_tokenizer
from training.wan import embed, new_model


def mean(told: dict[str, float]) -> float:
    return sum(told.values()) / len(told)


def test_a_few_steps_tell_far_more_than_chance() -> None:
    """Chance is about a quarter."""
    tokenizer = new_tokenizer()
    torch.manual_seed(0)
    encoder = new_text_encoder(len(tokenizer), width=64, layers=2)
    told = reading.teach_to_read(encoder, tokenizer, steps=60, seed=0, batch=16)
    assert set(told) == set(reading.VALUES)
    assert mean(told) > 0.4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder of two layers."""
    tokenizer = new_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    torch.manual_seed(1)
    new_text_encoder(len(tokenizer), layers=2).save_pretrained(tmp_path / "text_encoder")
    return tmp_path


def test_layers_that_a_folder_lacks_add_nothing_at_first(folder: Path) -> None:
    tokenizer = new_tokenizer()
    grown = new_text_encoder(len(tokenizer))
    assert not reading.load_encoder(grown, tokenizer, folder), "it has fewer layers"
    trained = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    tokens = tokenizer("a red star spins on blue dots", return_tensors="pt")
    told = [embed(net.eval(), tokens.input_ids, tokens.attention_mask) for net in (grown, trained)]
    assert LAYERS > 2
    assert torch.equal(*told)


def test_a_grown_vocabulary_keeps_the_words_that_it_knew(folder: Path) -> None:
    tokenizer = new_tokenizer()
    encoder = new_text_encoder(len(tokenizer), layers=2)
    assert reading.load_encoder(encoder, tokenizer, folder), "the folder has all"
    words = folder / "tokenizer" / "tokenizer.json"
    words.write_text(words.read_text().replace('"zigzags"', '"saunters"'))
    assert not reading.load_encoder(encoder, tokenizer, folder), "it lacks a word"
    known = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    theirs = UMT5EncoderModel.from_pretrained(folder / "text_encoder").shared.weight
    for word in ("red", "star", "bounces", "background"):
        ours = encoder.shared.weight[tokenizer.convert_tokens_to_ids(word)]
        assert torch.equal(ours, theirs[known.convert_tokens_to_ids(word)]), word


def test_teaching_on_keeps_what_a_folder_holds_beside_the_encoder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text("{}")
    out = tmp_path / "start"
    shutil.copytree(folder, tmp_path / "from")
    arguments = ["--init", str(tmp_path / "from"), "--out", str(out), "--steps", "2"]
    monkeypatch.setattr("sys.argv", ["reading", *arguments])
    reading.main()
    assert (out / "transformer" / "config.json").exists()
    encoder = new_text_encoder(len(new_tokenizer()))
    assert reading.load_encoder(encoder, new_tokenizer(), out)


def test_a_folder_of_a_reader_alone_is_a_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the model card's commands have it: reading from nothing, then drawing."""
    monkeypatch.setattr("sys.argv", ["reading", "--out", str(tmp_path), "--steps", "2"])
    reading.main()
    tokenizer, student = new_model()
    assert student.load(tmp_path, tokenizer), "it can read all"
    reader = UMT5EncoderModel.from_pretrained(tmp_path / "text_encoder")
    for ours, theirs in zip(student.text_encoder.parameters(), reader.parameters(), strict=True):
        assert torch.equal(ours, theirs)
