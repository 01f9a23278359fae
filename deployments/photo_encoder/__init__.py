"""The photo encoder: turns photos into chunks with vectors."""
