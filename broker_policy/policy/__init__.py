"""The policy document of each namespace: where it is kept, how workers follow and confirm it."""
