"""Off-policy evaluation, tests that may be looked at early, and the gates of a version."""
