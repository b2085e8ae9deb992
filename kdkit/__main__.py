"""`python -m kdkit`: the command line."""

from .study.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
