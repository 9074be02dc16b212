"""Collecting episodes, and what a training run keeps in its folder."""
