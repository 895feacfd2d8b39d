"""Several machines behind one server: their links, the placement of lines, and who starts their processes."""
