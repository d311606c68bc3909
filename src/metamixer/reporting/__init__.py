"""Runs and studies as one page, and as pictures."""
