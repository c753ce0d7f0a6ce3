"""Mixture-of-experts kernels: tensors in, tensors out. Import `zoo_kernels.ops`; everything else is private."""
