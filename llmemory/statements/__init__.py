"""The one place where SQL is built: functions of the tables that return statements.

Nothing here runs a statement. ``owner_id = :owner_id`` stands on every table of each of them.
"""
