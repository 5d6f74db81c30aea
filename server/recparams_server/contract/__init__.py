"""The contract in Python: its enum numbers, its errors and its interactions."""
