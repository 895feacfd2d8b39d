"""`atoll admin`: administration of a server."""
