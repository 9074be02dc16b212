"""Training language models and reward models on files."""
