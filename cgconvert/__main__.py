"""`python -m cgconvert`."""

from cgconvert.cli.main import main

if __name__ == "__main__":
    main()
