"""Simulated people, the demo, and the comparison of algorithms."""
