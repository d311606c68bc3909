"""What every test shares."""

import torch

from metamixer._torchvision import mend

mend()
torch.set_num_threads(1)  # xdist runs a process per core
