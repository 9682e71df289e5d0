"""Adapters on a worker are diffusers' own, and all of one is used or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AnimateDiffPipeline, WanPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from jobs.errors import CannotRunHere
from jobs.loras import LORA_FILE, with_loras
from jobs.model_folder import inspect_model
from jobs.spec_lora import Lora
from tests.workers.tiny_animatediff import write_tiny_animatediff
from workers.families import FAMILIES, open_family
from workers.joining import join
from workers.setup import WorkerSetup

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(scope="module")
def tiny_animatediff(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_animatediff(tmp_path_factory.mktemp("tiny") / "animatediff")


def write_lora(family: str, model: Path, out: Path, seed: int = 0) -> Path:
    """A random adapter of a model, written as diffusers writes one."""
    denoiser = open_family(family, str(model), "float32", "cpu").denoiser
    denoiser.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS))
    torch.manual_seed(seed)
    for name, weight in denoiser.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight, std=0.3)
    weights = get_peft_model_state_dict(denoiser)
    if family == "animatediff":
        AnimateDiffPipeline.save_lora_weights(out, unet_lora_layers=weights)
    else:
        FAMILIES[family].pipeline.save_lora_weights(out, transformer_lora_layers=weights)
    return out / LORA_FILE


def call(family: str, model: torch.nn.Module) -> torch.Tensor:
    torch.manual_seed(3)
    x = torch.randn(1, 4, 3, 8, 8)
    text = torch.randn(1 if family == "wan" else 3, 20, 16)
    with torch.no_grad():
        return model(x, torch.tensor([500]), text, return_dict=False)[0]


@pytest.mark.parametrize(
    ("family", "kind"), [("wan", WanPipeline), ("animatediff", AnimateDiffPipeline)]
)
def test_adapters_are_added_as_diffusers_adds_them(
    family: str, kind: type, tiny_wan: Path, tiny_animatediff: Path, tmp_path: Path
) -> None:
    model = tiny_wan if family == "wan" else tiny_animatediff
    files = [write_lora(family, model, tmp_path / str(n), seed=n) for n in range(2)]
    scales = (0.5, -1.0)
    adapters = [(str(file), scale) for file, scale in zip(files, scales, strict=True)]
    ours = open_family(family, str(model), "float32", "cpu", adapters).denoiser
    pipeline = kind.from_pretrained(model)
    for n, file in enumerate(files):
        pipeline.load_lora_weights(file.parent, adapter_name=str(n))
    pipeline.set_adapters(["0", "1"], list(scales))
    theirs = pipeline.transformer if family == "wan" else pipeline.unet
    plain = open_family(family, str(model), "float32", "cpu").denoiser
    assert torch.allclose(call(family, ours), call(family, theirs), atol=1e-4)
    assert not torch.allclose(call(family, ours), call(family, plain), atol=1e-2)
    assert type(ours) is type(plain)
    assert ours.state_dict().keys() == plain.state_dict().keys(), (
        "nothing is left beside the weights"
    )
    assert not any(weight.requires_grad for weight in ours.parameters())


def renamed(old: str, new: str) -> Change:
    return lambda weights: {name.replace(old, new): t for name, t in weights.items()}


def without(ending: str) -> Change:
    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        gone = next(name for name in weights if name.endswith(ending))
        return {name: t for name, t in weights.items() if name != gone}

    return change


def foreign(extra: dict[str, torch.Tensor]) -> Change:
    """As other tools name them, with more beside."""

    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = {
            "transformer.": "diffusion_model.",
            ".to_out.0": ".to_o",
            "attn1.to_": "self_attn.",
            "attn2.to_": "cross_attn.",
        }
        told = {}
        for name, tensor in weights.items():
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            told[name] = tensor
        return told | extra

    return change


NOT_WHOLE: dict[str, tuple[Change, str]] = {
    "layers that are not there": (renamed("attn1.to_q", "attn9.to_q"), "does not fit"),
    "a text encoder's": (renamed("transformer.", "text_encoder."), "text encoders are not built"),
    "half a layer": (without("lora_B.weight"), "first and .* second halves"),
    "no layer": (renamed("lora_A.weight", "lora_A.default.weight"), "does not fit"),
    "not finite": (lambda w: {n: t * float("nan") for n, t in w.items()}, "does not fit"),
    "differences": (
        foreign({"diffusion_model.blocks.0.norm3.diff": torch.ones(2)}),
        r"norm3\.diff .*whole differences",
    ),
    "a norm's bias": (
        foreign({"diffusion_model.blocks.0.norm3.diff_b": torch.ones(2)}), "whole differences"
    ),
    "DoRA": (
        lambda w: w | {"transformer.blocks.0.attn1.to_q.dora_scale": torch.ones(2)}, "DoRA"
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoilt", NOT_WHOLE)
def test_an_adapter_that_would_not_be_used_whole_is_refused(
    tiny_wan: Path, tmp_path: Path, spoilt: str
) -> None:
    """By one clear error, whatever the libraries would do: leave it out or raise."""
    change, says = NOT_WHOLE[spoilt]
    file = write_lora("wan", tiny_wan, tmp_path)
    save_file({n: t.contiguous() for n, t in change(load_file(file)).items()}, file)
    with pytest.raises(CannotRunHere, match=says):
        _ = open_family("wan", str(tiny_wan), "float32", "cpu", [(str(file), 1.0)]).denoiser


def test_an_adapter_as_other_tools_write_it(tiny_wan: Path, tmp_path: Path) -> None:
    """With a difference beside it that is zero everywhere."""
    file = write_lora("wan", tiny_wan, tmp_path)
    ours = open_family("wan", str(tiny_wan), "float32", "cpu", [(str(file), 1.0)]).denoiser
    change = foreign({"diffusion_model.blocks.0.norm3.diff": torch.zeros(2)})
    save_file(change(load_file(file)), file)
    theirs = open_family("wan", str(tiny_wan), "float32", "cpu", [(str(file), 1.0)]).denoiser
    assert torch.equal(call("wan", ours), call("wan", theirs))


def test_a_file_that_is_gone_is_named(tiny_wan: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotRunHere, match=r"gone\.safetensors is missing on this machine"):
        adapters = [(str(tmp_path / "gone.safetensors"), 1.0)]
        _ = open_family("wan", str(tiny_wan), "float32", "cpu", adapters).denoiser


def test_a_host_with_another_file_may_not_join(tiny_wan: Path, tmp_path: Path) -> None:
    """Whoever plans and whoever renders may be different machines."""
    file = write_lora("wan", tiny_wan, tmp_path)
    info, planned = with_loras(inspect_model(tiny_wan), [Lora(path=str(file))])
    setup = WorkerSetup(worker="w", model=str(tiny_wan), loras=tuple(planned))
    assert join(setup, info.identity).profile()
    write_lora("wan", tiny_wan, tmp_path, seed=1)
    with pytest.raises(CannotRunHere, match=r"another file .* copy the adapter there again"):
        join(setup, info.identity)
