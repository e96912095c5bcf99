"""The answer store in a PostgreSQL database, which teachers on several machines share."""
