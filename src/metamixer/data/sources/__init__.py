"""Where images come from: folders, standard sets, Hugging Face, scenes."""
