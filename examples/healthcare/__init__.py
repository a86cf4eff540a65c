"""Patient data between agents: what must not pass is blocked, what need not be seen is redacted."""
