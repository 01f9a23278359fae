"""What the networks share: devices, batches, pixels and weights."""
