#!/usr/bin/env bash
# The main job, from nothing: a checkpoint becomes a bundle, the bundle answers a question about a picture.
# Makes its own environment (.venv, without torch) and bundle (bundles/reader); quick the second time.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

make_environment .venv copy cpu,export
exec .venv/bin/python scripts/demo.py
