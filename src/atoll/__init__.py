"""Functions, serverless, on machines that you own."""
