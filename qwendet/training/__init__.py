"""Training: Hugging Face's Trainer with our loss, parameter groups and checkpoints."""
