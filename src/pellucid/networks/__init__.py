"""Restoration networks: models, training, trust. Imports core only."""
