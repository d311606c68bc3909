"""Processors and memory: those of the system, and fewer in a container."""

import os
import re
import subprocess
import sys

import pytest

from metamixer.core import machine


@pytest.fixture
def container(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CONTAINER", tmp_path)

    def write(**files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".", 1)).write_text(text)

    return write


def test_processors(container):
    own = len(os.sched_getaffinity(0))
    assert machine.cores() == own
    container(cpu_max="max 100000\n")
    assert machine.cores() == own
    container(cpu_max="50000 100000\n")
    assert machine.cores() == 1, "half of one is one"
    container(cpu_max=f"{(own + 5) * 100000} 100000\n")
    assert machine.cores() == own


def test_memory(container):
    free = machine.available_memory()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free <= total
    container(memory_max="max\n", memory_current="100\n")
    assert machine.available_memory() > 1e6
    container(memory_max="1000\n", memory_current="700\n")
    assert machine.available_memory() == 300
    container(memory_max="1000\n", memory_current="700\n", memory_stat="anon 600\ninactive_file 50\n")
    assert machine.available_memory() == 350


def test_memory_of_a_process():
    assert 1e7 < machine.resident_memory(os.getpid()) < 1e11
    assert machine.resident_memory(2**30) == 0


def test_a_system_that_says_nothing(container, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_SYSTEM", tmp_path)
    assert machine.available_memory() == float("inf")
    assert machine.resident_memory(os.getpid()) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="torch has another OpenMP there")
@pytest.mark.parametrize(
    ("given", "spins"), [({}, "3000"), ({"GOMP_SPINCOUNT": "70"}, "70"), ({"OMP_WAIT_POLICY": "active"}, "30000000000")]
)
def test_threads_spin_briefly_unless_the_environment_says_otherwise(given, spins):
    """As the OpenMP of torch itself reports it when a command has loaded torch."""
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    command = [sys.executable, "-m", "metamixer", "predict", "nothing", "nothing"]
    told = subprocess.run(command, env=environment | given | {"OMP_DISPLAY_ENV": "verbose"}, capture_output=True)
    assert re.findall(rb"GOMP_SPINCOUNT = '(\d+)'", told.stderr) == [spins.encode()], told.stderr
