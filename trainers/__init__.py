"""Training and evaluation: one loop engine, three trainers on it, and their Ray Train wrapper."""
