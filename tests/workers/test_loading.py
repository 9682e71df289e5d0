"""What is said where a model's parts are loaded."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from workers.families import open_family
from workers.quiet import quiet_libraries


def test_a_config_that_says_what_nobody_reads_is_told(
    tiny_wan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quiet_libraries()
    logger = logging.getLogger("diffusers.configuration_utils")
    logger.addHandler(caplog.handler)
    try:
        folder = shutil.copytree(tiny_wan, tmp_path / "wan")
        assert open_family("wan", str(folder), "float32", "cpu").denoiser and not caplog.text
        path = folder / "transformer" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sparse": True, "_note": 1}))
        assert open_family("wan", str(folder), "float32", "cpu").denoiser
    finally:
        logger.removeHandler(caplog.handler)
    assert "{'sparse': True} were passed to WanTransformer3DModel, but are not exp" in caplog.text
