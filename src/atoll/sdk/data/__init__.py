"""`sync_dir`, `Volume` and downloads, as users import them."""
