"""Two agents: a help desk with durable state, and a router that asks it."""
