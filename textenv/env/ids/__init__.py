"""The environment ids, one a file: a file here that calls ``register`` is all that a new id needs."""
