"""Methods, networks, data and seeds against each other, from one file."""
