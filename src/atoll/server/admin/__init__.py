"""Administration of a server: removal of users, quotas at the node, the audit, backup and restore."""
