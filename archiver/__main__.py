"""`python -m archiver` does what `archiver` does."""

from archiver.cli import main

main()
