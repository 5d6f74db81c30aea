"""Sizes of requests that the contract promises to take."""

MOST_REQUESTS = 256
"""Requests of a batch."""
MOST_RECORDS = 1000
"""Interactions or profiles of a message."""
LARGEST_CHUNK = 1024 * 1024
"""Bytes of a file in one message of an upload."""
LARGEST_NUMBER = (1 << 32) - 1
"""Highest model version and activation that a decision token has room for."""
MOST_DELETED = 100
"""Model versions that one call may delete."""
