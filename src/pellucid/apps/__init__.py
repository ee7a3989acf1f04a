"""Command line and pictures: argument parsing, nothing else. Imports stages."""
