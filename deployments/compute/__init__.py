"""What the networks share: devices, backends, batches, pixels and weights."""
