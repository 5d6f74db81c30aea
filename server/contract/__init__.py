"""The contract in Python: its numbers, its errors, and what it records."""
