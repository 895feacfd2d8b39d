"""One machine: its sandboxes, volumes, storage peers and capacity."""
