"""Metadata of a call by which its caller shows who it is."""

ADMIN_KEY_HEADER = "x-admin-key"
API_KEY_HEADER = "x-api-key"
