"""The process of a machine that has joined a server: sessions in front of its daemon, over connections that it dials."""
