"""Groups of settings; server.config puts them together."""
