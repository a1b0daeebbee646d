"""`python -m hostd.cli`: the same as the command `hostd`."""

import sys

from hostd.cli import main

sys.exit(main())
