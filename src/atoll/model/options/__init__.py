"""Groups of options of `settings.toml` that have a module each."""
