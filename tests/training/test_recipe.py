"""The recipe of the demo models, with steps so few that only its order is shown."""

import json
from pathlib import Path

import pytest

from jobs.model_folder import inspect_model
from training import wan
from training.recipe import Kitchen, Lengths, make_model, make_pyramid
from training.record import RECORD
from training.trainer import Recipe, Trainer
from training.vae import VaeRecipe

pytestmark = pytest.mark.slow

TINY = Recipe(tokens=180, clips=6, first_clips=4, odd_shapes=0.0, average_every=1)
TINY_VAE = VaeRecipe(batch=1, pixel_frames=5, crop_px=32)
LENGTHS = Lengths(vae=1, decoder=2, reading=3, wan=1, pyramid=1)


@pytest.mark.long
def test_parts_are_made_in_order_and_a_stop_costs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    kitchen = Kitchen(runs=runs, compiled=False, lengths=LENGTHS)

    def killed(self: Trainer, progress: float) -> float:
        raise KeyboardInterrupt

    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        make_model(kitchen, TINY, TINY_VAE, out / "plain")
    names = ("vae_whole", "vae", "start")
    began = {name: (runs / name / RECORD).read_text() for name in names}
    assert [json.loads(text)["steps"] for text in began.values()] == [1, 2, 3]
    monkeypatch.setattr(Trainer, "train_step", step)
    make_model(kitchen, TINY, TINY_VAE, out / "plain")
    assert began == {name: (runs / name / RECORD).read_text() for name in names}, "done once"
    make_pyramid(kitchen, TINY, out / "pyramid")
    plain, pyramid = (inspect_model(out / name) for name in ("plain", "pyramid"))
    assert plain.defaults.pyramid_steps == () and pyramid.defaults.pyramid_steps == (1, 1, 1)
    files = [{n: h for n, h in model.weights.items() if "transformer" not in n}
             for model in (plain, pyramid)]  # fmt: skip
    assert files[0] == files[1], "it shares the autoencoder and the encoder that reads"
    assert plain.weights != pyramid.weights
    whole, sharp = (wan.AutoencoderKLWan.from_pretrained(runs / n) for n in ("vae_whole", "vae"))
    assert whole.config["latents_mean"] == sharp.config["latents_mean"]
