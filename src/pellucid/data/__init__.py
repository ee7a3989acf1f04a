"""Readers, writers and the run record. Imports core only."""
