"""The stages: each one Ray Data job and one Hydra entry point."""
