"""python -m copymit: the console program, where it is not installed."""

from copymit.cli.verbs import main

if __name__ == "__main__":
    main()
