"""What scripts/evaluate.py and scripts/train_encoder.py consist of."""
