"""One page to look at, for a store, a training run or a search: self-contained HTML."""
