"""`python -m weir.cli` is the `weir` command of this very interpreter."""

import sys

from weir.cli import main

sys.exit(main())
