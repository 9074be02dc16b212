"""The command line, one command a file; only these modules import agents and rewards by name."""
