"""Files in the data folder by which the command line finds a development server."""

ADMIN_KEY_FILE = "admin-key"
ADDRESS_FILE = "address"
