"""A trained network as a page and a JSON endpoint on this machine."""
