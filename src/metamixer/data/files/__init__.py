"""Reading folders of images."""
