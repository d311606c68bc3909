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
    for name in ("metamixer", "numpy", "pillow"):
        assert found["versions"][name] == version(name)
    assert found["versions"]["torch"] == str(torch.__version__)  # the package's own version may lack +cpu or +cu130


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr("metamixer.runs.environment._PACKAGES", ("numpy", "no-such-package-at-all"))
    versions = environment()["versions"]
    assert versions == {"numpy": version("numpy"), "no-such-package-at-all": None, "torch": str(torch.__version__)}
