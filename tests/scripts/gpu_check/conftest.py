"""A small check's configuration, and its model on the CPU."""

from pathlib import Path

import pytest
from gpu_check.config import Config


@pytest.fixture
def make_config(tmp_path):
    """A configuration with a work folder that is there."""

    def make(**changes):
        fields = {
            "work": tmp_path / "work",
            "pack": tmp_path / "pack",
            "size": "tiny",
            "precisions": ("fp16",),
            "dry_run": True,
            "sides": (56, 112),
            "prompt_tokens": 24,
            "context": 128,
            "num_runs": 3,
        }
        config = Config(**fields | changes)
        config.work.mkdir(exist_ok=True)
        (config.work / "config.json").write_text(config.to_json(), encoding="utf-8")
        return config

    return make


@pytest.fixture
def with_model(make_config, make_bundle):
    """The same, with the tiny checkpoint and its float bundle where steps look for them."""
    made = make_bundle("tiny", dtype="BF16")
    config = make_config()
    Path(config.work / "checkpoint").symlink_to(made.checkpoint)
    Path(config.work / "model.float").symlink_to(made.bundle)
    return config
