"""What the networks share: devices, backends, batches, crops and weights."""
