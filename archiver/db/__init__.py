"""The way to PostgreSQL: the pool, the migrations, and the server that comes along."""
