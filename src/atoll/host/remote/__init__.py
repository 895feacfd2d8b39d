"""The remote host: calls over a server's lines; standard library only, and nothing that Linux alone has."""
