"""The server's database: users, keys, sessions of the page, the audit, and tables of other parts.

SQLAlchemy Core on SQLite in the state directory, or on PostgreSQL by URL. A part with tables of its own defines them on
`tables.metadata` in a module of its own, and adds one migration: the next number in `migrations`, whose
`down_revision` is the number before. Two parts that take the same number at once get two heads, which a test refuses:
the later one renumbers its own. A migration is never changed once it is released.

Code of the event loop calls `await database.run(function)`; `function(connection)` runs in a thread, in one short
transaction: it asks, changes and returns, and waits for nothing else.
"""
