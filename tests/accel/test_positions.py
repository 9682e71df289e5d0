"""Frames of a coarse stage stand where their latent frames do."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from accel.positions import stage_positions
from tests.workers.tiny import CHANNELS, tiny_transformer


def positions(model: WanTransformer3DModel, frames: int) -> torch.Tensor:
    """The rotary table of a clip, [frames, places, width]."""
    cos, _ = model.rope(torch.zeros(1, CHANNELS, frames, 8, 8))
    return cos[0, :, 0].unflatten(0, (frames, -1))


def test_every_fourth_position() -> None:
    model = tiny_transformer()
    whole = positions(model, 33)
    with stage_positions(model, 4):
        coarse = positions(model, 9)
    assert torch.equal(coarse, whole[::4])
    assert torch.equal(coarse[0], whole[0]), "the first frame stays"
    assert torch.equal(positions(model, 33), whole), "and afterwards all is as before"


@torch.no_grad()
def test_the_model_sees_them() -> None:
    model, x = tiny_transformer(), torch.randn(1, CHANNELS, 3, 8, 8)
    args = (x, torch.tensor([500]), torch.randn(1, 4, 16))
    plain = model(*args, return_dict=False)[0]
    with stage_positions(model, 1):
        assert torch.equal(model(*args, return_dict=False)[0], plain)
    with stage_positions(model, 2):
        assert not torch.equal(model(*args, return_dict=False)[0], plain)
    assert torch.equal(model(*args, return_dict=False)[0], plain)


def test_it_is_put_back_after_an_error() -> None:
    model = tiny_transformer()
    plain = model.rope.freqs_cos
    with pytest.raises(KeyError), stage_positions(model, 2):
        assert model.rope.freqs_cos is plain, "a distributed model sends its buffers around"
        raise KeyError
    assert model.rope.freqs_cos is plain
    assert "forward" not in vars(model.rope)


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear has no rotary positions"):
        stage_positions(torch.nn.Linear(2, 2), 2).__enter__()
