"""Comparing agents: many runs, one budget, and statistics that say how sure a difference is."""
