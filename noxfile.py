"""The project's sessions. Plain ``nox`` runs what a change must pass; ``nox --list`` shows all.

Tests use the server that LLMEMORY_TEST_DATABASE_URL names, or else start the embedded one. For
another Python than the one nox runs on: ``nox -s integration --force-python 3.13``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import nox
from nox.project import dependency_groups, load_toml
from packaging.requirements import Requirement

PYPROJECT = load_toml("pyproject.toml")
PYTHONS = ["3.11", "3.13"]
"""The oldest and the newest."""

THROUGH_SQLALCHEMY = (
    "built_documents",
    "callers_engines",
    "connections",
    "event_loops",
    "models",
    "pools_of_asyncpg",
    "search_statement",
    "sessions_of_built_documents",
    "shared_pools",
)
THROUGH_PGBOUNCER = ("documents", "external_id", "search", "stored_documents", "transactions")
NEED_ARGUMENTS = {"local_heartbeat", "peers", "quality"}
UNWANTED = {"langchain", "langchain-core", "openai", "torch", "transformers"}

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"

# pyenv's commands answer only for the versions that are switched on.
for folder in Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob("versions/3.1*/bin"):
    os.environ["PATH"] += f"{os.pathsep}{folder}"


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and the direction of imports."""
    install(session, "lint", extras="")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types with mypy and pyright."""
    install(session, "typing")
    session.run("mypy")
    session.run("pyright")


@nox.session
def docs(session: nox.Session) -> None:
    """Run the examples of README and docs."""
    install(session, "docs")
    run_tests(session, "docs")


@nox.session
def package(session: nox.Session) -> None:
    """Build sdist and wheel, then use the wheel far from the clone."""
    session.install(*dependency_groups(PYPROJECT, "package"))
    # Under root the embedded server runs as another user, who must be able to pass.
    with tempfile.TemporaryDirectory(prefix="llmemory-package-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        session.run("python", "-m", "build", "--outdir", name, silent=True)
        (wheel,) = folder.glob("*.whl")
        script = (Path("tests") / "package" / "use_the_wheel.py").absolute()
        session.run("virtualenv", str(folder / "venv"), silent=True)
        python = str(folder / "venv" / "bin" / "python")
        session.chdir(folder)
        for requirement in (str(wheel), f"{wheel}[embedded,cli]"):
            session.run(python, "-m", "pip", "install", requirement, external=True, silent=True)
            listed = session.run(
                python, "-m", "pip", "list", "--format=freeze", external=True, silent=True
            )
            installed = {line.partition("==")[0].lower() for line in str(listed).splitlines()}
            if found := UNWANTED & installed:
                session.error(f"{requirement} installs {found}")
        session.run(python, "-I", str(script), str(folder / "data"), external=True)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Migrate and serve with the oldest dependencies that pyproject.toml allows."""
    constraints = Path(session.create_tmp()) / "lowest.txt"
    constraints.write_text("\n".join(lowest_versions()))
    install(session, "test", "--constraint", str(constraints))
    run_tests(session, "unit", "migrations", "frameworks")


@nox.session
def migrations(session: nox.Session) -> None:
    """Migrate real databases, in every way and state."""
    install(session, "test")
    run_tests(session, "migrations")


@nox.session(python=PYTHONS)
def unit(session: nox.Session) -> None:
    """Run what needs neither a server nor the network, on each Python that is installed."""
    install(session, "test")
    run_tests(session, "unit")


@nox.session
@nox.parametrize("sqlalchemy", ["2.0", "2.1"])
def integration(session: nox.Session, sqlalchemy: str) -> None:
    """Run the library against a server; on the older SQLAlchemy what speaks to it.

    What is to work through PgBouncer goes through it there, where the program is installed.
    """
    install(session, "poolers", f"sqlalchemy=={sqlalchemy}.*")
    if sqlalchemy == "2.1":
        run_tests(session, "integration", "frameworks")
        if not session.posargs:
            session.run("pytest", "-m", "alone", "tests/integration/test_large_documents.py")
        return
    run_tests(session, *integration_files(THROUGH_SQLALCHEMY))
    if session.posargs:
        return
    if has_pgbouncer():
        run_tests(session, "poolers")
        session.env["LLMEMORY_TEST_POOLER"] = "either"
    run_tests(session, *integration_files(THROUGH_PGBOUNCER))


@nox.session(default=False)
@nox.parametrize("driver", ["asyncpg", "psycopg"])
def poolers(session: nox.Session, driver: str) -> None:
    """Run the library through PgBouncer, each test that may by each driver."""
    if not has_pgbouncer():
        session.error("Install the program first: apt-get install pgbouncer")
    install(session, "poolers")
    session.env["LLMEMORY_TEST_POOLER"] = driver
    run_tests(session, "integration")


@nox.session(default=False)
def citus(session: nox.Session) -> None:
    """Run the tests of distributed tables on a Citus cluster.

    LLMEMORY_TEST_CITUS_URL names the database of its coordinator, as a superuser: with the
    extensions citus and vector, and its workers registered. No package index has such a server.
    """
    if not os.environ.get("LLMEMORY_TEST_CITUS_URL"):
        session.error("LLMEMORY_TEST_CITUS_URL must name the coordinator of a Citus cluster.")
    install(session, "test")
    session.run("pytest", "tests/citus", *session.posargs)


@nox.session
def servers(session: nox.Session) -> None:
    """Run the library in real servers: gunicorn, uWSGI, Celery, uvicorn, Django's own."""
    install(session, "servers")
    session.run("pytest", "tests/servers", "--timeout=180", "-m", "not alone", *session.posargs)
    if not session.posargs:
        session.run("pytest", "tests/servers", "--timeout=180", "-m", "alone")


@nox.session(default=False)
def local(session: nox.Session) -> None:
    """Embed with a model of sentence-transformers; torch alone is 1.5 GB to install."""
    # An environment that is used again still has the oldest.
    install(session, "local", "--upgrade", extras="[embedded,local]")
    session.run("pytest", "tests/local", "-m", "not alone", *session.posargs)
    if not session.posargs:
        session.run("pytest", "tests/local", "-m", "alone")
        (oldest,) = (line for line in lowest_versions() if line.startswith("sentence-"))
        session.install(oldest)
        session.run("pytest", "tests/local", "-k", "TestVectors")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmarks that need no arguments, or the one behind ``--`` with those it has."""
    install(session, "bench")
    if session.posargs:
        session.run("python", *session.posargs)
        return
    for file in sorted(Path("benchmarks").glob("[!_]*.py")):
        if file.stem not in NEED_ARGUMENTS:
            session.run("python", str(file))


@nox.session(default=False)
def peers(session: nox.Session) -> None:
    """Compare with other libraries, each installed from the index in an environment of its own."""
    install(session, "test", "uv")
    session.run("python", "benchmarks/peers.py", *session.posargs)


def install(
    session: nox.Session,
    group: str,
    *others: str,
    extras: str = "[embedded,cli,detect,files,openai,flask,fastapi,django]",
) -> None:
    """Install the clone in development mode with a dependency group."""
    requirements = dependency_groups(PYPROJECT, group)
    session.install("--editable", f".{extras}", *requirements, *others)


def run_tests(session: nox.Session, *places: str) -> None:
    """Run pytest in folders or files of ``tests``, or with the arguments behind ``--``."""
    chosen = session.posargs or [f"tests/{place}" for place in places]
    session.run("pytest", "--numprocesses=2", "--dist=worksteal", "-m", "not alone", *chosen)


def integration_files(names: Iterable[str]) -> list[str]:
    """Return the files of tests of these names, as `run_tests` takes them."""
    return [f"integration/test_{name}.py" for name in names]


def has_pgbouncer() -> bool:
    """Return whether the program is installed; no package index has it."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None


def lowest_versions() -> Iterator[str]:
    """Yield the lower bound of every dependency, extras included."""
    project = PYPROJECT["project"]
    for line in chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(line)
        (bound,) = requirement.specifier
        yield f"{requirement.name}=={bound.version}"
