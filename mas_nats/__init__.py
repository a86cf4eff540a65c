"""The SDK: agents that talk over a governed NATS JetStream broker."""
