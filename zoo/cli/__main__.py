"""``python -m zoo.cli``: the same as ``zoo``; processes of a distributed run are started so."""

from zoo.cli import main

main()
