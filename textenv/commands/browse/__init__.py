"""Index an offline web, and write demonstrations of browsing it."""
