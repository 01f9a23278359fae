"""The encoder: turns crops, queries and texts into vectors."""
