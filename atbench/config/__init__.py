"""The configuration: its schema, what may be built from it, and its checks."""
