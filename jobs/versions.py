"""Versions of our own code that a film's bits depend on: each is part of the recipes.

Raise one whenever the same job would give other bits. Results of the old version then stay in the
store under their old recipes, and a job that was planned with it is refused, not mixed.
"""

from __future__ import annotations

#: How a job becomes stages, windows, steps and pieces, and which noise levels the steps go through.
PLANNER_VERSION = 9

#: What the encoders are given of a prompt, and what is kept of their answer. The planner's version
#: goes up with it: a job that began with other tokens is refused, not started over.
PROMPTS_VERSION = 2

#: What the accelerations compute with the same settings.
ACCELERATIONS_VERSION = 5

#: Which numbers a key of noise (shot seed, latent frame, purpose, step) gives.
NOISE_VERSION = 1

#: How latents become the bytes of a decoded piece: where decoding differs from a family's pipeline,
#: the conversion to the codec's format, the codec and its settings. The version of the codec's
#: library is not known at planning, where no recipe may depend on who renders; raise this when a
#: library that we ship with encodes otherwise.
ENCODER_VERSION = 2
