"""Web apps around functions, inside a sandbox: what `serve=True` means. Needs FastAPI and uvicorn of the environment."""
