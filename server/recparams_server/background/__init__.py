"""Background work of a server, one file a task."""
