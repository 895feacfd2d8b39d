"""Several machines, as namespaces on this one: calls, faults and shared files over all of them."""
