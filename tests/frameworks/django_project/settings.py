"""Settings of a project whose documents lie in the database of its models."""

from __future__ import annotations

import os

from psycopg.conninfo import conninfo_to_dict

_given = conninfo_to_dict(os.environ["DATABASE_URL"])

ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": _given["host"],
        "NAME": _given["dbname"],
        "PASSWORD": _given.get("password", ""),
        "PORT": _given.get("port", ""),
        "USER": _given.get("user", ""),
    },
    "special": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "/run/postgresql",
        "NAME": "a/b?c",
        "PASSWORD": "p@ss +%ö",
        "USER": "Ännä Smith",
        "OPTIONS": {"connect_timeout": 3, "isolation_level": 2, "sslmode": "require"},
    },
    "service": {
        "ENGINE": "django.db.backends.postgresql",
        "OPTIONS": {"service": "documents", "server_side_binding": True},
    },
    "overlong": {"ENGINE": "django.db.backends.postgresql", "NAME": 64 * "x"},
    "notes": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "llmemory.django"]
LLMEMORY = {"DATABASE": "default", "EMBEDDER": "llmemory.HashEmbedder"}
MIDDLEWARE = ["llmemory.django.middleware.ErrorMiddleware"]
ROOT_URLCONF = "views"
SECRET_KEY = "of no use"
STATIC_URL = "static/"
TEST_RUNNER = "llmemory.django.testing.MemoryTestRunner"
USE_TZ = True
