"""Tests of the server: real processes on loopback, over TLS with a private certificate authority."""
