"""``python -m textenv``: the command line."""

import sys

from textenv.commands.cli import main

sys.exit(main())
