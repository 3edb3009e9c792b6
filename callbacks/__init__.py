"""Delivery of completions to callers' callback URLs: durable, retried, and only where allowed."""
