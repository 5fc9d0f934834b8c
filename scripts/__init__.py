"""Commands for people: the quickstart and its demonstration. Run them as `python -m scripts.…`."""
