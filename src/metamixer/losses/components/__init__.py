"""Parts that several losses are made of."""
