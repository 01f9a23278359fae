"""What scripts/evaluate.py consists of."""
