"""What a file holds besides pixels, found without a decoder: one module for each container.

Each module has `find(data) -> Found`. It walks the container, takes out of it what the decoder
needs for the pixels of the one picture that counts, and leaves metadata behind. So no metadata can
make a decoder refuse the pixels, and sizes are known before a decoder allocates anything by them.
"""
