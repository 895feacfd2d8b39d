"""The caller's streams, and the lines about calls that a person reads beside them."""
