"""Fine-tuning from a checkpoint alone: what it decides of a config (`resolve`)."""
