#!/usr/bin/env bash
# Quantize the sample, check it, and catch a broken recipe, in an environment of its own (.venv-quant).
# What follows is handed to scripts/quantize_sample.py: bash scripts/quantize.sh --recipe thor
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

make_environment .venv-quant copy cpu,export,quant sample
exec .venv-quant/bin/python scripts/quantize_sample.py "$@"
