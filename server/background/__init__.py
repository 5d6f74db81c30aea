"""What a server does without being asked, a file each."""
