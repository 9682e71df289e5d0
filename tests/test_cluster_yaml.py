"""The cluster file that we ship is one that Ray accepts."""

import json
from pathlib import Path

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parent.parent


def test_cluster_yaml_is_valid_by_rays_own_schema() -> None:
    import ray

    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(config, json.loads(schema.read_text()))
    assert config["provider"]["type"] == "local"


def test_cluster_yaml_starts_ray_closed() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    starts = [
        command
        for name in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[name]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--include-dashboard=false" in starts[0]
