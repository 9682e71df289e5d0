"""The text encoder learns to read, and goes on from one that can read already."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from training import reading
from training.record import RECORD
from training.text import LAYERS, new_text_encoder, new_tokenizer
from training.wan import embed, new_model


def mean(told: dict[str, float]) -> float:
    return sum(told.values()) / len(told)


@pytest.mark.long
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


class Killed(Exception):
    pass


def course(out: Path | None, rate: float = 2e-3) -> tuple[dict[str, float], UMT5EncoderModel]:
    tokenizer = new_tokenizer()
    torch.manual_seed(2)
    encoder = new_text_encoder(len(tokenizer), width=32, layers=1)
    told = reading.teach_to_read(encoder, tokenizer, 40, seed=3, batch=4, rate=rate, folder=out)
    return told, encoder


@pytest.mark.long
def test_a_stopped_course_goes_on_with_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "KEPT_EVERY", 10)
    in_one_go, whole = course(None)
    step = reading.Course._learn_step

    def killed_at_27(self: reading.Course) -> float:
        if self.step == 27:
            raise Killed
        return step(self)

    monkeypatch.setattr(reading.Course, "_learn_step", killed_at_27)
    with pytest.raises(Killed):
        course(tmp_path)
    assert not (tmp_path / RECORD).exists(), "not finished"
    began_at = []
    monkeypatch.setattr(
        reading.Course, "_learn_step", lambda self: (began_at.append(self.step), step(self))[1]
    )
    told, encoder = course(tmp_path)
    assert began_at[0] == 20 and told == in_one_go
    for ours, theirs in zip(encoder.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert course(tmp_path)[0] == told and len(began_at) == 20, "a finished one has nothing to do"


def test_a_course_says_how_it_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "KEPT_EVERY", 20)
    told, _ = course(tmp_path)
    said = json.loads((tmp_path / RECORD).read_text())
    assert said["told_right"] == round(mean(told), 4) and said["by_property"] == told
    assert [row["step"] for row in said["progress"]] == [20, 40] and said["steps"] == 40
    assert said["progress"][1]["loss"] < said["progress"][0]["loss"]
    assert said["elapsed_s"] > 0 and "cores" in said["hardware"]
    with pytest.raises(SystemExit, match="other rate"):
        course(tmp_path, rate=1e-3)
