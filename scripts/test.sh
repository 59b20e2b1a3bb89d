#!/usr/bin/env bash
# All tests, in an environment of their own (.venv-dev) with torch and transformers as the reference.
# What follows is handed to pytest: bash scripts/test.sh tests/runtime -x
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

make_environment .venv-dev editable cpu,export,quant,verify,video,data dev
exec .venv-dev/bin/python -m pytest "$@"
