"""Hydra configuration: every YAML file here is composed in a test."""
