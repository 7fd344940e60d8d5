"""What the loader puts together: weights, processor, adapter, manifest, machine."""
