"""What surrounds every call: who calls, how often, how long, and how it ends."""
