"""How fast metamixer is on this machine: ``python -m benchmarks``. One suite a file, listed in ``running.SUITES``."""
