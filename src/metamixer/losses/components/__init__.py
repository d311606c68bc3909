"""Components shared by several losses."""
