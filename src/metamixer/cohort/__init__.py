"""Peers, their stages, and how they are mixed and computed."""
