"""What libraries say to their programmers, kept from the person in front of the film."""

from __future__ import annotations

import logging

import diffusers
import transformers


def quiet_libraries() -> None:
    """No warnings and no progress bars of diffusers and transformers, but for keys of a config that
    its class does not take: the model may be another one without them. It comes before the import
    of their models: some warn when they are imported."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    logging.getLogger("diffusers.configuration_utils").setLevel(logging.WARNING)
