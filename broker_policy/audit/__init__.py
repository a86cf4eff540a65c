"""The audit: records in the one log, projected into a hash chain with indexes in Redis."""
