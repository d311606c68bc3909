"""Serve a trained network as a web page and a JSON endpoint on this machine."""
