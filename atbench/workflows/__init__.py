"""What each verb does, from a configuration to files: train, evaluate, export, resume."""
