"""The demo model's own tokenizer and text encoder: a very small UMT5 that learns to read first."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from training.captions import caption, vocabulary
from training.world import (
    BACKGROUND_COLOURS,
    COLOURS,
    MOTIONS,
    PATTERNS,
    RADII,
    SHAPES,
    TEMPOS,
    Scene,
    sample_scene,
)

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"

#: Share of words that are made unknown ones while the encoder learns to read.
UNHEARD = 0.02


def new_tokenizer(text_tokens: int = 512) -> PreTrainedTokenizerFast:
    """A word tokenizer: lower case, letters only; a word outside the grammar becomes `<unk>`."""
    words = [PAD, EOS, UNKNOWN, *vocabulary()]
    core = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    core.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^\p{L}]+"), " "),
            normalizers.Strip(),
        ]
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, words.index(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=text_tokens,
        padding_side="right",
    )


def new_text_encoder(num_words: int, width: int = 128) -> UMT5EncoderModel:
    """A two-layer UMT5 encoder with fresh weights, no dropout."""
    config = UMT5Config(
        vocab_size=num_words,
        d_model=width,
        d_kv=32,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    return UMT5EncoderModel(config)


#: What a caption says of each body, and of the second if there is none.
BODY_VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(RADII),
    "motion": MOTIONS,
    "tempo": tuple(TEMPOS),
}
NOBODY = "nobody"
MOST_BODIES = 2
VALUES: dict[str, tuple[str, ...]] = {
    "pattern": PATTERNS,
    "backdrop": tuple(BACKGROUND_COLOURS),
} | {
    f"{name} {number}": (NOBODY, *values)
    for number in range(MOST_BODIES)
    for name, values in BODY_VALUES.items()
}


def properties(scene: Scene) -> dict[str, str]:
    """What a caption says of a scene; its bodies in the order in which it names them."""
    told = {"pattern": scene.background.pattern, "backdrop": scene.background.colour}
    for number in range(MOST_BODIES):
        for name in BODY_VALUES:
            there = number < len(scene.bodies)
            told[f"{name} {number}"] = getattr(scene.bodies[number], name) if there else NOBODY
    return told


def teach_to_read(
    encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    seed: int,
    batch: int = 64,
) -> float:
    """Train the encoder until every token's embedding tells, linearly, the whole scene.

    A large model's text encoder comes trained. Learning to read from the denoiser's loss alone
    takes a small model longer than learning to draw. Returns the share of properties that the
    last captions' tokens told right.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, 4))
    sizes = [len(values) for values in VALUES.values()]
    head = nn.Linear(encoder.config.d_model, sum(sizes))
    weights = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    right = 0.0
    for _ in range(steps):
        scenes = [sample_scene(rng) for _ in range(batch)]
        tokens = tokenizer(
            [caption(scene, rng) for scene in scenes], padding=True, return_tensors="pt"
        )
        lost_BN = torch.from_numpy(rng.uniform(size=tokens.input_ids.shape)) < UNHEARD
        tokens.input_ids[lost_BN & tokens.attention_mask.bool()] = tokenizer.unk_token_id
        told_ND = encoder(**tokens).last_hidden_state[tokens.attention_mask.bool()]
        lengths = tokens.attention_mask.sum(dim=1)
        truths = [properties(scene) for scene in scenes]
        losses, hits = [], []
        for logits, (name, values) in zip(
            head(told_ND).split(sizes, dim=1), VALUES.items(), strict=True
        ):
            truth_B = torch.tensor([values.index(truth[name]) for truth in truths])
            truth_N = truth_B.repeat_interleave(lengths)
            losses.append(nn.functional.cross_entropy(logits, truth_N))
            hits.append((logits.argmax(dim=1) == truth_N).float().mean())
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        right = 0.95 * right + 0.05 * torch.stack(hits).mean().item()
    return right
