"""Image files written byte by byte, so that they can say what no encoder would write.

All pixels are zero, and every writer packs them as tightly as its container can: the files are
small, whatever size they declare.
"""
