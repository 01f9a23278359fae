"""What scripts/train_encoder.py consists of."""
