"""The way in: a request is read, its sender is proved, and it is durable before the answer (R1)."""
