"""Alembic's entry: `outbox-relay migrate` hands over a connection; `alembic upgrade head` opens its own."""

from alembic import context
from sqlalchemy import create_engine

from outbox import settings
from outbox.store import models
from outbox.store.store import dialect_of

options = {"target_metadata": models.metadata, "version_table": models.VERSION_TABLE}

if context.is_offline_mode():
    backend = context.config.attributes.get("backend", "sqlite")
    context.configure(dialect_name=backend, literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
elif (given := context.config.attributes.get("connection")) is not None:
    context.configure(connection=given, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(settings.load().database_url or "sqlite:///outbox.db")
    dialect_of(engine).prepare(engine)
    with dialect_of(engine).migrating(engine) as connection:
        context.configure(connection=connection, **options)
        context.run_migrations()
