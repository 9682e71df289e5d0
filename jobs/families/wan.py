"""Wan 2.1, and the 5B of Wan 2.2, text to video."""

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
    marks: Mapping[str, bool] = {"expand_timesteps": False}
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

    def geometry(self, configs: Mapping[str, Config], defaults: ModelDefaults) -> ModelGeometry:
        return wan_geometry(self.name, configs["transformer"], configs["vae"], defaults)

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


class WanTI2V(Wan):
    """Wan 2.2's 5B, given text alone: the same transformer, to which every token's own time is
    told, and an autoencoder of 16 pixels a latent place. With an image it would be told that the
    first frame is there already; all times are the same without one."""

    name = "wan-ti2v"
    marks: Mapping[str, bool] = {"expand_timesteps": True}
    defaults = ModelDefaults(size=(1280, 704), fps=24, window_latent_frames=31)
