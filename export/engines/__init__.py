"""A bundle's TensorRT graphs -> engines for one GPU, beside them in the bundle."""
