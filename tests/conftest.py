import torch

# Tests share a machine's cores; two threads that wait for each other are far slower than one.
torch.set_num_threads(1)
