"""The layer around every RPC: authorization, rate and time limits, errors, TLS."""
