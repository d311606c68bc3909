"""Data sources: folders, standard sets, Hugging Face, scenes."""
