"""Language models: causal language models with a prefix cache, value heads, and the bundled checkpoint."""
