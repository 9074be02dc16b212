"""Collect, import and export rankings."""
