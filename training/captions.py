"""What a scene is called: a small grammar with varied wordings, all of them true of the scene.

`caption` draws a wording; `vocabulary` is every word the grammar can say, which is what the demo's
tokenizer is built from.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

from training.world import BACKGROUND_COLOURS, COLOURS, Background, Body, Scene

SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "ball", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "ring", "donut"),
    "cross": ("cross", "cross", "plus"),
    "heart": ("heart",),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    name: (name,) for name in sorted({*COLOURS, *BACKGROUND_COLOURS})
} | {"gray": ("gray", "grey"), "purple": ("purple", "purple", "violet")}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("", "", "", "", "medium"),
    "big": ("big", "big", "large", "huge"),
}
TEMPO_WORDS: dict[str, tuple[str, ...]] = {
    "slow": ("slowly", "slowly", "gently"),
    "normal": ("",),
    "quick": ("quickly", "fast", "rapidly"),
}
_SIDEWAYS = ("move {}", "move to the {}", "slide {}", "slide to the {}", "drift {}", "go {}")
MOTION_WORDS: dict[str, tuple[str, ...]] = {
    "left": tuple(phrase.format("left") for phrase in _SIDEWAYS),
    "right": tuple(phrase.format("right") for phrase in _SIDEWAYS),
    "up": ("move up", "rise", "float up", "go up", "move upwards"),
    "down": ("move down", "fall", "sink", "go down", "fall down", "move downwards"),
    "bounce": ("bounce", "bounce", "bounce up and down", "hop", "jump"),
    "circle": ("circle around", "move in a circle", "go around in circles", "orbit"),
    "swing": ("swing", "swing from side to side", "sway", "move back and forth"),
    "pulse": ("pulse", "grow and shrink", "pulsate"),
    "spin": ("spin", "rotate", "turn around", "spin around"),
    "still": ("stay still", "stand still", "rest"),
    "zigzag": ("zigzag", "bounce off the walls", "change direction again and again"),
    "hide": (
        "hide behind a pillar",
        "move behind a pillar",
        "disappear behind a pillar",
        "go behind a pillar and come back",
    ),
}
_PARTICIPLES = {
    "move": "moving",
    "slide": "sliding",
    "rise": "rising",
    "bounce": "bouncing",
    "hop": "hopping",
    "circle": "circling",
    "pulse": "pulsing",
    "pulsate": "pulsating",
    "spin": "spinning",
    "rotate": "rotating",
    "zigzag": "zigzagging",
    "change": "changing",
    "hide": "hiding",
}
_FINITES = {"go": "goes"}
PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("a {} background", "a {} background", "a plain {} background"),
    "gradient": ("a {} gradient background", "a {} gradient"),
    "striped": (
        "a {} striped background",
        "a striped {} background",
        "{} stripes",
        "a background with {} stripes",
    ),
    "dotted": (
        "a {} dotted background",
        "a dotted {} background",
        "{} dots",
        "a background with {} dots",
    ),
    "checkered": ("a {} checkered background", "a checkered {} background", "a {} checkerboard"),
}
_PLACES = ("on", "on", "on", "over", "against", "in front of")
_JOINTS = ("and", "and", "while")


#: One in so many wordings is never trained on.
HELD_OUT_EVERY = 10


def caption(scene: Scene, rng: np.random.Generator, *, held_out: bool = False) -> str:
    """One true wording of the scene, among those that are trained on or, if asked, the others.
    Now and then it says nothing of the background or of a body's rest; a held-out one says all."""
    while True:
        said = _caption(scene, rng, complete=held_out)
        if is_held_out(said) == held_out:
            return said


def is_held_out(said: str) -> bool:
    """Whether a wording is kept from training: all that it says but names of shapes and colours."""
    parts = re.findall("[a-z]+", re.sub(r"\ban\b", "a", said))
    words = " ".join("_" if word in _NAMES else word for word in parts)
    return zlib.crc32(words.encode()) % HELD_OUT_EVERY == 0


_NAMES = {
    word for table in (SHAPE_WORDS, COLOUR_WORDS) for words in table.values() for word in words
}


def _caption(scene: Scene, rng: np.random.Generator, *, complete: bool) -> str:
    clauses = [_clause(body, rng, complete=complete) for body in scene.bodies]
    said = clauses[0]
    for clause in clauses[1:]:
        said = f"{said} {_pick(rng, _JOINTS)} {clause}"
    behind = f"{_pick(rng, _PLACES)} {_backdrop(scene.background, rng)}"
    layout = rng.uniform()
    if layout < 0.78:
        return f"{said} {behind}"
    if layout < 0.94 or complete:
        return f"{behind}, {said}"
    return said


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    said: list[str] = ["a", "an", "the", "is", *_PLACES, *_JOINTS]
    for table in (SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS, TEMPO_WORDS, PATTERN_WORDS):
        said += [phrase for phrases in table.values() for phrase in phrases]
    for phrase in (p for phrases in MOTION_WORDS.values() for p in phrases):
        said += [phrase, *(_conjugate(phrase, form) for form in ("finite", "participle"))]
    return sorted({word for phrase in said for word in re.findall("[a-z]+", phrase)})


def _clause(body: Body, rng: np.random.Generator, *, complete: bool) -> str:
    """What a body is and does, such as "a big red star is slowly moving left"."""
    thing = " ".join(
        word
        for word in (
            _pick(rng, SIZE_WORDS[body.size]),
            _pick(rng, COLOUR_WORDS[body.colour]),
            _pick(rng, SHAPE_WORDS[body.shape]),
        )
        if word
    )
    subject = f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
    if body.motion == "still" and rng.uniform() < 0.3 and not complete:
        return subject
    form = _pick(rng, ("finite", "finite", "participle", "progressive"))
    does = _conjugate(_pick(rng, MOTION_WORDS[body.motion]), form)
    tempo = _pick(rng, TEMPO_WORDS[body.tempo])
    before = tempo != "fast" and rng.uniform() < 0.3
    words = (subject, "is" if form == "progressive" else "")
    return " ".join(w for w in (*words, *((tempo, does) if before else (does, tempo))) if w)


def _conjugate(phrase: str, form: str) -> str:
    """A phrase that starts with a bare verb, as "moves left" or "moving left"."""
    verb, _, rest = phrase.partition(" ")
    if form == "finite":
        verb = _FINITES.get(verb, verb + "s")
        rest = re.sub(r"\band (shrink|come)\b", r"and \1s", rest)
    else:
        verb = _PARTICIPLES.get(verb, verb + "ing")
        rest = rest.replace("and shrink", "and shrinking").replace("and come", "and coming")
    return f"{verb} {rest}".rstrip()


def _backdrop(background: Background, rng: np.random.Generator) -> str:
    colour = _pick(rng, COLOUR_WORDS[background.colour])
    phrase = _pick(rng, PATTERN_WORDS[background.pattern])
    return phrase.format(colour)


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
