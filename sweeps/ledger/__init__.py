"""What must survive: objects on a storage, leases, checkpoints, and results read from them."""
