"""Commands about functions that a server keeps: served, scheduled and deployed ones."""
