"""Quotas of volumes: limits of users, enforced by the kernel where it can, else measured."""
