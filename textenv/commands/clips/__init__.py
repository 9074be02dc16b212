"""Learn a task from preferences between clips of what an agent does."""
