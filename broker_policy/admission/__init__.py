"""How much of what policy allows is let through now: rate limits of senders, circuits of targets."""
