"""The file system that carries volumes of many machines: mounted, watched, and known by an identity."""
