"""`python -m loreloop.cli` is `loreloop`."""

from loreloop.cli.main import main

if __name__ == "__main__":
    main()
