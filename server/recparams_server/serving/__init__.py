"""Decisions from memory."""
