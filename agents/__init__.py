"""RL algorithms that learn in textenv's environments, one a file."""
