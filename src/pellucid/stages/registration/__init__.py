"""Views of one specimen: opened, registered over time, their transforms written."""
