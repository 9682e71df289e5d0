"""Text to video in HunyuanVideo's format, without embedded guidance: flow matching.

Its CLIP reads: its last token tells the whole scene. Its Llama has random weights: what it gives of
each word tells the words apart, and the transformer's own refiner learns to read them.

Shapes: B batch, C latent channels, F latent frames, H rows, W columns, N text tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import processors
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from accel.pyramid import FlowPath
from jobs.model_folder import resolve_model
from training.draws import Draw, NoiseRecipe
from training.families.autoencoder import CHANNELS
from training.families.student import (
    FPS,
    HEAD_WIDTH,
    HEADS,
    TEXT_TOKENS,
    TEXT_WIDTH,
    TransformerStudent,
    same_words,
    unfused_attention,
)
from training.text import EOS, new_clip_encoder, new_tokenizer

#: The pipeline pads CLIP's texts to so many tokens, and reads Llama's third layer from the end.
CLIP_PADDED, LLAMA_SKIPPED = 77, 2
ARCHITECTURE = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_WIDTH,
    "num_layers": 2,
    "num_single_layers": 4,
    "num_refiner_layers": 1,
    "guidance_embeds": False,
    "text_embed_dim": TEXT_WIDTH,
    "pooled_projection_dim": TEXT_WIDTH,
    "rope_axes_dim": (12, 18, 18),
}
SIDECAR = {
    "format": 1, "fps": FPS, "size": [96, 96], "window_latent_frames": 5,
    "overlap_latent_frames": 2, "steps": 30, "guidance": 4.0, "text_tokens": TEXT_TOKENS,
}  # fmt: skip


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """The words' tokenizer, with as many marks before a text as make the template's beginning as
    long as the pipeline takes it to be."""
    tokenizer = new_tokenizer()
    begins = DEFAULT_PROMPT_TEMPLATE["template"].split("{}")[0]
    words = len(tokenizer(begins, add_special_tokens=False).input_ids)
    marks = " ".join([EOS] * (DEFAULT_PROMPT_TEMPLATE["crop_start"] - words))
    number = tokenizer.convert_tokens_to_ids(EOS)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{marks} $A", special_tokens=[(EOS, number)]
    )
    return tokenizer


def new_llama(num_words: int) -> LlamaModel:
    """A small one with random weights."""
    config = LlamaConfig(
        vocab_size=num_words,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=LLAMA_SKIPPED + 1,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
        initializer_range=0.5,  # so that words lie apart
    )
    return LlamaModel(config)


class HunyuanVideoStudent(TransformerStudent):
    """A `HunyuanVideoTransformer3DModel`, a Llama and a CLIP."""

    encoder_names = ("text_encoder", "text_encoder_2")
    block_names = ("transformer_blocks", "single_transformer_blocks")
    path = FlowPath()

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.llama_tokenizer = llama_tokenizer()
        self.text_encoder = new_llama(num_words)
        self.text_encoder_2 = new_clip_encoder(num_words, positions=CLIP_PADDED)
        self.transformer = HunyuanVideoTransformer3DModel(**ARCHITECTURE)
        self.start_silent()

    def learn_to_read(self, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
        """CLIP's weights are those of the AnimateDiff model that ships, with room for the padding
        that the pipeline adds; no text reaches there."""
        demo = resolve_model("demo-animatediff")
        same_words(tokenizer, demo)
        read = CLIPTextModel.from_pretrained(demo / "text_encoder", torch_dtype=torch.float32)
        weights = read.state_dict()
        for name, value in weights.items():
            if name.endswith("position_embedding.weight"):
                padding = value.new_zeros(CLIP_PADDED - len(value), TEXT_WIDTH)
                weights[name] = torch.cat([value, padding])
        self.text_encoder_2.load_state_dict(weights)

    def tokens(
        self, tokenizer: PreTrainedTokenizerFast, captions: list[str], *, long: bool
    ) -> tuple[Tensor, ...]:
        """Llama's ids and their mask, BN with the template; CLIP's ids."""
        template, crop = (DEFAULT_PROMPT_TEMPLATE[name] for name in ("template", "crop_start"))
        padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        worded = [template.format(each) for each in captions]
        told = self.llama_tokenizer(worded, max_length=crop + TEXT_TOKENS, **padded)
        brief = tokenizer(captions, max_length=CLIP_PADDED, **padded)
        return told.input_ids, told.attention_mask, brief.input_ids

    def forward(self, x_BCFHW: Tensor, times_B: Tensor, *tokens: Tensor, stride: int) -> Tensor:
        ids_BN, mask_BN, brief_BN = tokens
        crop = DEFAULT_PROMPT_TEMPLATE["crop_start"]
        told = self.text_encoder(ids_BN, attention_mask=mask_BN, output_hidden_states=True)
        with unfused_attention(x_BCFHW):
            return self.transformer(
                hidden_states=x_BCFHW,
                timestep=times_B * 1000,
                encoder_hidden_states=told.hidden_states[-LLAMA_SKIPPED - 1][:, crop:],
                encoder_attention_mask=mask_BN[:, crop:],
                pooled_projections=self.text_encoder_2(brief_BN).pooler_output,
                return_dict=False,
            )[0]

    def target(self, drawn: Draw) -> Tensor:
        return drawn.noise_BCFHW - drawn.clean_BCFHW


def pipeline(run: Path, vae: Path) -> HunyuanVideoPipeline:
    """Of a training's folder and its autoencoder's."""
    return HunyuanVideoPipeline(
        text_encoder=LlamaModel.from_pretrained(run / "text_encoder"),
        tokenizer=llama_tokenizer(),
        transformer=HunyuanVideoTransformer3DModel.from_pretrained(
            run / "transformer", torch_dtype=torch.bfloat16
        ),
        vae=AutoencoderKLHunyuanVideo.from_pretrained(vae),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=NoiseRecipe().flow_shift),
        text_encoder_2=CLIPTextModel.from_pretrained(run / "text_encoder_2"),
        tokenizer_2=AutoTokenizer.from_pretrained(run / "tokenizer"),
    )
