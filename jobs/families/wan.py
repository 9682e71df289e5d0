"""Wan 2.1, text to video."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.errors import CannotRunHere
from jobs.families import wan_tensors
from jobs.families.family import Config, Diffusion, ModelDefaults, Shapes
from jobs.families.wan_geometry import wan_geometry
from jobs.geometry import ModelGeometry


class Wan:
    """`WanPipeline`: a causal video autoencoder, a transformer with rotary positions, UMT5."""

    name = "wan"
    pipeline = "WanPipeline"
    denoiser = "transformer"
    classes: Mapping[str, str] = {"transformer": "WanTransformer3DModel", "vae": "AutoencoderKLWan"}
    components: tuple[str, ...] = ("transformer", "vae", "text_encoder")
    tokenizer_files: tuple[tuple[str, ...], ...] = (("tokenizer.json",), ("spiece.model",))
    diffusion: Diffusion = "flow"
    accelerations: tuple[str, ...] = ("slicing", "adaptive", "rehash", "fast_attention")
    batches_branches = False
    joint_text = False
    decodes_in_float32 = True
    defaults = ModelDefaults()

    def refuse(self, index: Config) -> None:
        if index.get("boundary_ratio") is not None or (index.get("transformer_2") or [None])[0]:
            raise CannotRunHere("model_index.json: two experts (transformer_2) are not built yet")
        if index.get("expand_timesteps"):
            raise CannotRunHere("model_index.json: expand_timesteps (Wan 2.2 5B) is not built yet")

    def geometry(self, configs: Mapping[str, Config], defaults: ModelDefaults) -> ModelGeometry:
        return wan_geometry(configs["transformer"], configs["vae"], defaults)

    def tensors(self, configs: Mapping[str, Config]) -> dict[str, Shapes]:
        expected = wan_tensors.expected_tensors(configs)
        width, text_dim = configs["text_encoder"]["d_model"], configs["transformer"]["text_dim"]
        if width != text_dim:
            raise CannotRunHere(
                f"text_encoder and transformer do not fit: d_model is {width}, text_dim is "
                f"{text_dim}"
            )
        return expected

    def longest_window(self, configs: Mapping[str, Config], stride: int) -> int:
        """Rotary positions are made for so many frames; those of a coarse stage stand apart."""
        most = int(configs["transformer"].get("rope_max_seq_len") or 1024)
        return (most - 1) // stride + 1
