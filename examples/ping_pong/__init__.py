"""Two agents that send a ball to and fro."""
