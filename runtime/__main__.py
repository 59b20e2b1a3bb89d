"""`python -m vlmedge.runtime COMMAND` is `vlmedge COMMAND`."""

import sys

from .cli.start import main

if __name__ == "__main__":
    sys.exit(main())
