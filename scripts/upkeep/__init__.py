"""What scripts/store.py consists of."""
