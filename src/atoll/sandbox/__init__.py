"""What a confined process sees and may do: a policy as a value, and bubblewrap that carries it out."""
