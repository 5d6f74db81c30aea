"""Simulated people: who they are, what they like, how they react."""
