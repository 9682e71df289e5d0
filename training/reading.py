"""Teaches a text encoder to read: from each of its tokens the whole scene can be told.

    python -m training.reading --init workers/demo_model --out training/runs/start --steps 4000

With `--clip` it is AnimateDiff's, which is causal: what its last tokens tell is the whole scene.
A large model's text encoder comes trained. Learning to read from the denoiser's loss alone takes a
small model longer than learning to draw. `--out` becomes a model folder for `training.wan --init`.
Run it again on the same folder to go on; `training.json` in it says how it went.

Shapes: B captions, N tokens, D width, V values of a property.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5EncoderModel,
    UMT5EncoderModel,
)

from training import world
from training.captions import caption
from training.record import RECORD, write_record
from training.text import CLIP_TOKENS, new_clip_encoder, new_text_encoder, new_tokenizer
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

TextEncoder = UMT5EncoderModel | T5EncoderModel | CLIPTextModel

#: Texts of encoders that take fewer tokens are always padded to all of them, as CLIP's are.
FULL_LENGTH = 512

#: Share of words that are made unknown ones while the encoder learns to read.
UNHEARD = 0.02

#: What a stopped run goes on from, and after how many steps it is written.
STATE = "reading.pt"
KEPT_EVERY = 500

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
SIZES = [len(values) for values in VALUES.values()]


def properties(scene: Scene) -> dict[str, str]:
    """What a caption says of a scene; its bodies in the order in which it names them."""
    told = {"pattern": scene.background.pattern, "backdrop": scene.background.colour}
    for number in range(MOST_BODIES):
        for name in BODY_VALUES:
            there = number < len(scene.bodies)
            told[f"{name} {number}"] = getattr(scene.bodies[number], name) if there else NOBODY
    return told


class Lessons:
    """Captions and what they say, drawn from a seed."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, seed: int, *, held_out: bool = False
    ) -> None:
        self.tokenizer, self.held_out = tokenizer, held_out
        self.rng = np.random.default_rng((seed, 4, int(held_out)))

    def draw(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids and their mask, BN, and the number of each property's value, B by property."""
        scenes = [sample_scene(self.rng) for _ in range(batch)]
        tokens = self.tokenizer(
            [caption(scene, self.rng, held_out=self.held_out) for scene in scenes],
            padding="max_length" if self.tokenizer.model_max_length < FULL_LENGTH else True,
            return_tensors="pt",
        )
        ids_BN, mask_BN = tokens.input_ids, tokens.attention_mask
        if not self.held_out:
            lost_BN = torch.from_numpy(self.rng.uniform(size=ids_BN.shape)) < UNHEARD
            ids_BN[lost_BN & mask_BN.bool()] = self.tokenizer.unk_token_id
        told = [properties(scene) for scene in scenes]
        return (
            ids_BN,
            mask_BN,
            torch.tensor(
                [[VALUES[name].index(value) for name, value in each.items()] for each in told]
            ),
        )


class Course:
    """An encoder that learns to read, and what it takes to go on after a stop.

    A linear map from its tokens to the scene learns with it. The map learns alone at first, so that
    an encoder that can read some forgets nothing.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        tokenizer: PreTrainedTokenizerFast,
        steps: int,
        seed: int,
        batch: int,
        rate: float,
    ) -> None:
        self.encoder, self.tokenizer = encoder, tokenizer
        self.steps, self.seed, self.batch = steps, seed, batch
        self.origin = {
            "world": world.VERSION, "steps": steps, "seed": seed, "batch": batch, "rate": rate,
            "weights": _digest(encoder),
        }  # fmt: skip
        torch.manual_seed(seed)
        self.lessons = Lessons(tokenizer, seed)
        self.head = nn.Linear(encoder.config.hidden_size, sum(SIZES)).to(encoder.device)
        self.weights = [*encoder.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.rates = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, steps)
        self.step, self.elapsed_s = 0, 0.0
        self.progress: list[dict[str, float]] = []

    def learn(self, folder: Path | None) -> dict[str, float]:
        """Learn up to the last step, from where ``folder`` has it, if it has; the share of held-out
        wordings' tokens that tell each property right."""
        if folder is None or not self._resume(folder):
            self._learn_head()
        losses: list[float] = []
        while self.step < self.steps:
            began_s = time.monotonic()
            losses.append(self._learn_step())
            self.elapsed_s += time.monotonic() - began_s
            if self.step % KEPT_EVERY == 0:
                self._report(losses)
                losses.clear()
                if folder is not None:
                    self._save(folder)
        told = examine(self.encoder, self.head, self.tokenizer, self.seed)
        if folder is not None:
            self._save(folder)
            mean = round(sum(told.values()) / len(told), 4)
            self._record(folder, told_right=mean, by_property=told)
        return told

    def _learn_head(self) -> None:
        began_s = time.monotonic()
        alone = torch.optim.AdamW(self.head.parameters(), lr=2e-2)
        for _ in range(self.steps // 20):
            _lesson(self.encoder, self.head, self.lessons.draw(self.batch)).backward()
            alone.step()
            alone.zero_grad()
        self.elapsed_s += time.monotonic() - began_s

    def _learn_step(self) -> float:
        self.optimizer.zero_grad()
        loss = _lesson(self.encoder, self.head, self.lessons.draw(self.batch))
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.rates.step()
        self.step += 1
        return loss.item()

    def _report(self, losses: list[float]) -> None:
        told = examine(self.encoder, self.head, self.tokenizer, self.seed)
        row = {"step": self.step, "loss": round(float(np.mean(losses)), 4)}
        self.progress.append(row | told)
        print(json.dumps(self.progress[-1]), flush=True)

    def _record(self, folder: Path, **said: object) -> None:
        write_record(
            folder, self.encoder.device, step=self.step, elapsed_s=self.elapsed_s,
            progress=self.progress, **said,
        )  # fmt: skip

    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "origin": self.origin,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "progress": self.progress,
            "encoder": self.encoder.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
            "drawn": self.lessons.rng.bit_generator.state,
        }
        torch.save(state, folder / f"{STATE}.new")
        (folder / f"{STATE}.new").replace(folder / STATE)

    def _resume(self, folder: Path) -> bool:
        if not (folder / STATE).exists():
            return False
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        other = [name for name, value in self.origin.items() if state["origin"][name] != value]
        if other:
            sys.exit(f"{folder} was begun with other {', '.join(other)}; use another --out")
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.progress = state["progress"]
        self.encoder.load_state_dict(state["encoder"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])
        self.lessons.rng.bit_generator.state = state["drawn"]
        return True


def _digest(encoder: TextEncoder) -> str:
    told = hashlib.sha256()
    for weight in encoder.state_dict().values():
        told.update(weight.cpu().numpy().tobytes())
    return told.hexdigest()[:12]


def teach_to_read(
    encoder: TextEncoder,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    seed: int,
    batch: int = 64,
    rate: float = 2e-3,
    folder: Path | None = None,
) -> dict[str, float]:
    """Train the encoder until every token's embedding tells, linearly, the whole scene; returns
    the share of held-out wordings' tokens that tell each property right.

    ``folder`` keeps the state that a stopped run goes on from, and how it went. Exits if it was
    begun otherwise.
    """
    return Course(encoder, tokenizer, steps, seed, batch, rate).learn(folder)


def _lesson(encoder: TextEncoder, head: nn.Linear, drawn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The sum over the properties of what telling them from each token costs."""
    tokens, truths = _tell(encoder, head, drawn)
    pairs = zip(tokens.split(SIZES, dim=1), truths.T, strict=True)
    return torch.stack([nn.functional.cross_entropy(told, truth) for told, truth in pairs]).sum()


@torch.no_grad()
def examine(
    encoder: TextEncoder,
    head: nn.Linear,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    captions: int = 512,
) -> dict[str, float]:
    """The share of tokens that tell each property right, in wordings that were never trained on."""
    drawn = Lessons(tokenizer, seed, held_out=True).draw(captions)
    tokens, truths = _tell(encoder, head, drawn)
    pairs = zip(VALUES, tokens.split(SIZES, dim=1), truths.T, strict=True)
    return {
        name: round((told.argmax(dim=1) == truth).float().mean().item(), 4)
        for name, told, truth in pairs
    }


def _tell(
    encoder: TextEncoder, head: nn.Linear, drawn: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The scores for all values of each token that can know, and the truths that it should tell:
    every real one, or in a causal encoder the last real one and the padding behind it."""
    ids_BN, mask_BN, truths_BP = (each.to(encoder.device) for each in drawn)
    if isinstance(encoder, CLIPTextModel):
        told_BND = encoder(ids_BN).last_hidden_state
        knows_BN = torch.roll(mask_BN, -1, dims=1) == 0
        knows_BN[:, -1] = True
    elif isinstance(encoder, T5EncoderModel):  # whose pipelines show it no mask
        told_BND = encoder(ids_BN).last_hidden_state
        knows_BN = mask_BN.bool()
    else:
        told_BND = encoder(ids_BN, mask_BN).last_hidden_state
        knows_BN = mask_BN.bool()
    return head(told_BND[knows_BN]), truths_BP.repeat_interleave(knows_BN.sum(dim=1), dim=0)


#: Weights of the text encoder that have a row for each word.
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
#: Weights of a block through which alone it adds to its input.
OUTPUTS = ("SelfAttention.o.weight", "DenseReluDense.wo.weight")


def load_encoder(encoder: TextEncoder, tokenizer: PreTrainedTokenizerFast, folder: Path) -> bool:
    """Take the weights of a model folder's text encoder. Words that it does not know keep their
    fresh embeddings, layers that it does not have add nothing at first; returns whether it has
    all, and so can read."""
    known = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer").get_vocab()
    words = tokenizer.get_vocab()  # in another order at each call
    trained = UMT5EncoderModel.from_pretrained(
        folder / "text_encoder", torch_dtype=torch.float32
    ).state_dict()
    common = [word for word in words if word in known]
    fresh = encoder.state_dict()
    for key, value in fresh.items():
        if key in EMBEDDINGS:
            rows = value.clone()
            rows[[words[word] for word in common]] = trained[key][[known[word] for word in common]]
            trained[key] = rows
        elif key not in trained:
            trained[key] = torch.zeros_like(value) if key.endswith(OUTPUTS) else value
    has_all = len(common) == len(words) and not any(
        key.endswith(OUTPUTS) and not trained[key].any() for key in trained
    )
    encoder.load_state_dict(trained)
    return has_all


def teach_folder(
    out: Path,
    steps: int,
    seed: int,
    *,
    rate: float = 2e-3,
    device: str = "cpu",
    init: Path | None = None,
    clip: bool = False,
) -> float:
    """Leave an encoder that reads, with its tokenizer and all else that ``init`` holds, in ``out``;
    the share that it tells right. ``clip``: AnimateDiff's, which begins from nothing."""
    torch.manual_seed(seed)
    tokenizer = new_tokenizer(CLIP_TOKENS) if clip else new_tokenizer()
    encoder = (new_clip_encoder if clip else new_text_encoder)(len(tokenizer))
    if init is not None:
        load_encoder(encoder, tokenizer, init)
    told = teach_to_read(encoder.to(device), tokenizer, steps, seed, rate=rate, folder=out)
    if init is not None:
        not_its_own = shutil.ignore_patterns(STATE, RECORD, "state.pt", "kept")
        shutil.copytree(init, out, ignore=not_its_own, dirs_exist_ok=True)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(out / "tokenizer")
    encoder.save_pretrained(out / "text_encoder")
    return sum(told.values()) / len(told)


def main() -> None:
    """Command line of learning to read."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--init", type=Path, help="a model folder whose encoder learns on")
    parser.add_argument("--clip", action="store_true", help="AnimateDiff's encoder, from nothing")
    parser.add_argument("--out", type=Path, default=Path("training/runs/start"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.clip and options.init is not None:
        parser.error("--clip begins from nothing; remove --init")
    told = teach_folder(
        options.out, options.steps, options.seed, rate=options.rate, device=options.device,
        init=options.init, clip=options.clip,
    )  # fmt: skip
    print(json.dumps({"told_right": round(told, 4)}))


if __name__ == "__main__":
    main()
