#!/usr/bin/env bash
# One command for a GPU machine without network: bash scripts/gpu_check.sh [--dry-run] ...
# Uses what its Python has (PYTHON names another) and the pack of dist/gpu-pack; installs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

for name in "${PYTHON:-}" python3.12 python3; do
  if [ -n "$name" ] && "$name" -c 'import sys, numpy, onnx; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    exec "$name" scripts/gpu_check.py "$@"
  fi
done
echo "gpu_check.sh: no Python 3.11 or newer with numpy and onnx here: name one, PYTHON=/path/to/python3" >&2
exit 1
