"""What may be wrong with a service, found in its database and its settings."""
