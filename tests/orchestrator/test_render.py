"""What a render knows before it has a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.cluster import Cluster
from orchestrator.render import slow_on_processors, takes_gpus
from tests.orchestrator.plans import make_plan


def test_what_processors_are_slow_at_is_named() -> None:
    plan = replace(make_plan(8), dtype="bfloat16")
    assert slow_on_processors(plan) == ""
    said = slow_on_processors(replace(plan, decoder_dtype="float16"))
    assert said.startswith("decoder_dtype: float16 can take ten times as long")
    both = slow_on_processors(replace(plan, dtype="float16", decoder_dtype="float16"))
    assert both.startswith("dtype: float16 and decoder_dtype: float16 can")


@pytest.mark.parametrize(
    ("gpus", "usable", "local", "device", "takes"),
    [
        (1, 1, True, "auto", True),
        (1, 0, True, "auto", False),
        (1, 0, True, "cuda", True),  # and is refused by name
        (1, 0, False, "auto", True),  # its workers say what they find
        (1, 1, True, "cpu", False),
        (0, 0, True, "auto", False),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_told(
    monkeypatch: pytest.MonkeyPatch, gpus: int, usable: int, local: bool, device: str, takes: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(usable))
    monkeypatch.setattr("torch.cuda.device_count", lambda: usable)
    cluster = Cluster(local=local, gpus=gpus, cpus=(4,), node_id="")
    said: list[str] = []
    assert takes_gpus(cluster, device, said.append) is takes
    left = gpus and not takes and device == "auto"
    assert len(said) == left
    if left:
        assert "cannot use the GPU of this machine; install a torch" in said[0]
