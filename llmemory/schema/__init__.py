"""The schema in the database: migrated, one or many, and kept apart by row level security."""
