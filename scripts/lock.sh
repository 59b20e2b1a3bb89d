#!/usr/bin/env bash
# pyproject.toml -> constraints.txt: one version of every package, direct or not, for Python 3.10 to 3.13.
# Run it after a change of dependencies, with uv installed (pip install uv), and commit the result.
#
# The extras gpu and tensorrt are left out: onnxruntime-gpu and onnxruntime are two builds of one package
# and exclude each other, and the right tensorrt is the one of the CUDA or JetPack on the device.
set -euo pipefail
cd "$(dirname "$0")/.."

uv pip compile pyproject.toml \
  --universal --python-version 3.10 --upgrade \
  --extra cpu --extra export --extra quant --extra verify --extra video --extra data --extra ray --extra rtx --group dev \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
  --output-file constraints.new --quiet

if grep -nE '://|file:|\+cpu' constraints.new; then
  echo "lock.sh: constraints.new holds the lines above, tied to one machine or index: not taken" >&2
  exit 1
fi
{
  echo "# Made by scripts/lock.sh from pyproject.toml. Use: pip install -c constraints.txt '.[cpu,export]'"
  cat constraints.new
} > constraints.txt
rm constraints.new
