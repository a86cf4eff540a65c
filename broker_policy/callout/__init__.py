"""The auth callout: a verified certificate in, a user with exactly its permissions out."""
