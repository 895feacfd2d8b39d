"""Commands about users and keys: of a server at an address, or of this machine's state directory."""
