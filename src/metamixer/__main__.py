"""`python -m metamixer` is the command `metamixer`."""

from metamixer.cli.app import main

if __name__ == "__main__":
    main()
