"""Worlds of other packages, one adapter a file: ``prefix:NAME`` is made by the file ``prefix.py``."""
