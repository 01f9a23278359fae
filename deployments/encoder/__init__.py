"""The encoder: crops, queries and texts to vectors."""
