"""What scripts/crashtest.py consists of."""
