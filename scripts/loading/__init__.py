"""What scripts/bulk.py consists of."""
