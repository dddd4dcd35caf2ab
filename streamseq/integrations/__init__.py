"""streamseq within the training loops of other packages: each needs its extra."""
