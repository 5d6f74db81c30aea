"""Who is simulated, and how they react."""
