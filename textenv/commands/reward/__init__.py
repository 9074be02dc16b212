"""Train, measure or serve a reward."""
