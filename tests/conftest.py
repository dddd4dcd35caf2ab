import pytest
import torch

# Their assertions say as much as those of the tests. Before anything imports them.
pytest.register_assert_rewrite("support.jobs", "support.store_suite")

# Tests share a machine's cores; two threads that wait for each other are far slower than one.
torch.set_num_threads(1)
