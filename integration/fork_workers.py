"""Workers that fork."""
