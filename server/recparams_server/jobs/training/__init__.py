"""A training run: reading, learning, holding out, committing."""
