"""What scripts/bench_gpu.py measures; needs torch, NumPy and Pillow alone."""
