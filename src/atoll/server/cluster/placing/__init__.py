"""The parts of placement: rooms of nodes, kinds of wishes, the queue, warmth, and reasons that users see. Pure."""
