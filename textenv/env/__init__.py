"""The Markov decision process of writing text, as a Gymnasium environment."""
