"""The store: the only owner of durable state."""
