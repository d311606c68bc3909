"""A run as files that other systems take: safetensors, ONNX, torch.export, and a hub."""
