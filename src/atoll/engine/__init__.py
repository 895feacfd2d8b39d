"""What places sandboxes and workers: a pure schedule, the pool that carries it out, and the node it runs on."""
