"""gunicorn's configuration for gevent workers with --preload: patch before anything is imported."""

from gevent import monkey

monkey.patch_all()
