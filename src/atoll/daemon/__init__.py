"""The supervisor behind every host: it never unpickles, and sees functions and data as opaque bytes, if at all."""
