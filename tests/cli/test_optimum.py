"""`optimum-cli export vlmedge`, where Optimum is installed."""

import subprocess
import sys

import pytest

pytest.importorskip("optimum.commands.optimum_cli", reason="optimum is not installed")

OPTIMUM_CLI = "from optimum.commands.optimum_cli import main; main()"


def run_optimum(*args: object) -> "subprocess.CompletedProcess[str]":
    """`optimum-cli *args` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", OPTIMUM_CLI, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_optimum_lists_our_exporter():
    assert "vlmedge" in run_optimum("export", "--help").stdout


def test_it_writes_the_bundle_that_vlmedge_export_writes(tiny_checkpoint, tiny_bundle, tmp_path):
    done = run_optimum("export", "vlmedge", tiny_checkpoint, tmp_path / "b", "--weights", "fp32")
    assert done.returncode == 0, done.stderr
    for file in tiny_bundle.iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


def test_options_and_errors_are_those_of_vlmedge_export():
    done = run_optimum("export", "vlmedge", "--weights", "int3", "checkpoint", "bundle")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("vlmedge export: ")
    assert "--vision-weights" in run_optimum("export", "vlmedge", "--help").stdout
