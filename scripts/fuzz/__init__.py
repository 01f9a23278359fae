"""What scripts/fuzztest.py consists of."""
