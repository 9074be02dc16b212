"""``python -m textenv``: the command line."""

import sys

from textenv.cli import main

sys.exit(main())
