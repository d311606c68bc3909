import json
import os
import sys
from importlib.metadata import version

import torch

from metamixer.runs.environment import environment


def test_versions_and_machine_are_recorded():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["command"] == sys.argv
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["threads"] == torch.get_num_threads()
    assert found["cpus"] == os.cpu_count()
    assert found["processor"]
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
    for name in ("metamixer", "torch", "numpy", "pillow"):
        assert found["versions"][name] == version(name)


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr("metamixer.runs.environment._PACKAGES", ("torch", "no-such-package-at-all"))
    assert environment()["versions"] == {"torch": version("torch"), "no-such-package-at-all": None}
