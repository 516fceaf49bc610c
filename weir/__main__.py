"""`python -m weir`: the `weir` command, where its script is not on the path."""

import sys

from weir.cli import main

if __name__ == "__main__":
    sys.exit(main())
