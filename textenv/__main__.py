"""``python -m textenv``: the command line."""

from textenv.commands.cli import entry

entry()
