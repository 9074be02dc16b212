"""Collect, import and export rankings and demonstrations."""
