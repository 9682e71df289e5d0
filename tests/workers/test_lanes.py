"""The lanes of decoders: where a context waits between the pieces of a shot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from accel import slicing
from jobs.accelerations import Slicing
from tests.workers.tiny import tiny_vae
from tests.workers.tiny_cogvideox import tiny_vae as tiny_cogvideox_vae
from workers.cogvideox_decoding import CogVideoXLane
from workers.decoding import DecodeLane
from workers.lanes import LANES_KEPT, Lane, LaneKeeper


def lane_of(family: str, slices: int | None = None) -> Lane:
    """One that has decoded a batch."""
    if family == "wan":
        vae, kind = tiny_vae(), DecodeLane
        channels = vae.config.z_dim
    else:
        vae, kind = tiny_cogvideox_vae(), CogVideoXLane
        channels = vae.config.latent_channels
    if slices:
        slicing.apply(vae, Slicing(slices=slices))
    lane = kind(vae)
    lane.decode(torch.randn(1, channels, lane.next_batch(), 8, 8))
    return lane


def tensors(context: Any) -> Iterator[torch.Tensor]:
    if isinstance(context, torch.Tensor):
        yield context
    elif isinstance(context, dict | list | tuple):
        for each in context.values() if isinstance(context, dict) else context:
            yield from tensors(each)


@pytest.mark.parametrize(
    ("family", "slices"), [("wan", None), ("cogvideox", None), ("cogvideox", 3)]
)
def test_a_context_waits_in_the_hosts_memory(family: str, slices: int | None) -> None:
    """All of it, and comes back as it was."""
    keeper, lane = LaneKeeper(), lane_of(family, slices)
    before = [each.clone() for each in tensors(vars(lane))]
    assert before
    keeper.keep(0, lane)
    assert all(map(torch.equal, tensors(vars(lane)), before))
    assert keeper.take(0, "meta") is lane
    assert all(each.is_meta for each in tensors(vars(lane)))
    assert keeper.take(0, "meta") is None, "taken once"


def test_a_few_shots_keep_theirs() -> None:
    keeper = LaneKeeper()
    for shot in range(LANES_KEPT + 1):
        assert keeper.take(shot, "cpu") is None
        keeper.keep(shot, lane_of("wan"))
    assert len(keeper) == LANES_KEPT
    assert keeper.take(0, "cpu") is None and keeper.take(LANES_KEPT, "cpu") is not None
