"""Engines on a GPU machine without network, checked and timed: python scripts/gpu_check.py --help.

docs/gpu-check.md says what is brought there and how; scripts/gpu_check.sh finds a Python for it.
"""

import sys

from gpu_check.command import main

if __name__ == "__main__":
    sys.exit(main())
