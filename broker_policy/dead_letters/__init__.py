"""Messages that were not handled: failure reports, exhausted deliveries, the dead-letter stream."""
