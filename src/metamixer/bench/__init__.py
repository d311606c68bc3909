"""How fast it is on this machine: ``metamixer bench``. One suite a file; ``running.SUITES`` is the table of them."""
