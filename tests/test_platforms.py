"""The package is imported where POSIX names are missing, as on Windows. Nothing else of Windows is tested."""

import subprocess
import sys

SCRIPT = """
import importlib, os, pkgutil, signal, sys
import metamixer, torch, torchvision, timm, matplotlib.pyplot, datasets, onnxruntime, huggingface_hub
for name in ("register_at_fork", "fork", "setpgrp", "getpgid", "killpg", "nice", "sched_getaffinity", "sysconf",
             "uname", "getloadavg", "geteuid", "getuid", "O_DIRECTORY", "mkfifo", "statvfs"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGKILL", "SIGQUIT"):
    delattr(signal, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for found in pkgutil.walk_packages(metamixer.__path__, "metamixer."):
    if not found.name.endswith("__main__") and "ray" not in found.name:
        importlib.import_module(found.name)
data = metamixer.data.load("fashion-mini", train_limit=2)
from metamixer.data.files.memory_budget import Room
from metamixer.core.machine import cores
print(len(data.train), Room(3).limit, cores() >= 1)
"""


def test_import_without_posix_names():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["20", "3", "True"]
