"""`python -m streamseq`, the same as `streamseq`."""

from streamseq.cli import main

main()
