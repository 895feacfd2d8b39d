"""The migrations of the schema, in order of their numbers; `schema` applies those that a database lacks."""
