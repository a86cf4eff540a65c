"""What the pages for users show, done as it stands there."""
