"""Metadata of a call by which its caller shows who it is.

The client has the same names; to import them from there would take all of it, at each start.
"""

ADMIN_KEY_HEADER = "x-admin-key"
API_KEY_HEADER = "x-api-key"
