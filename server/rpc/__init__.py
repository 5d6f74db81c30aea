"""The surroundings of every call: authorization, rate limits, time limits, failures, TLS."""
