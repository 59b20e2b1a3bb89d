"""`python -m vlmedge.runtime COMMAND` is `vlmedge COMMAND`."""

import sys

from .start import main

if __name__ == "__main__":
    sys.exit(main())
