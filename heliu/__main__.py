"""`python -m heliu` is the `heliu` command."""

from heliu.cli import main

if __name__ == "__main__":
    main()
