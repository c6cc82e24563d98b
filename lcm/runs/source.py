"""The source files of a user's own attention and network, and whether they have changed.

A file counts as its syntax tree without docstrings, so that comments and layout do not count. What
belongs to the repository, the standard library or torch is left to the commit and the versions that
run.json has; an installed package is not followed.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import itertools
import sys
from pathlib import Path

from hydra.utils import get_object

from lcm.config.compose import GROUPS, SHIPPED
from lcm.data.folder import files_digest, list_images
from lcm.errors import UserError
from lcm.files import write
from lcm.runs.directory import run_directory
from lcm.runs.lock import FILE, owner
from lcm.runs.state import other_images, read_state, refuse_another_config
from lcm.training import checkpoint

_read = functools.cache(Path.read_bytes)
INSTALLED = {"site-packages", "dist-packages"}
PUBLIC = ("lcm.models.build", "lcm.runs.load")  # what modules of one's own import

# ------------------------------------------------------------------------------- what is recorded


def source(config):
    """{"attention": {file: digest}, "model": {...}} of the user's own files; {} where attention and
    network are the repository's.
    """
    return {
        group: {name: _digest(file) for name, file in files.items()}
        for group, files in _own(config).items()
    }


def keep_own(config, directory):
    """Copy the user's own files to `directory`/source. Returns {"attention": one digest of its
    target and all its own files, "model": ...}.
    """
    for files in _own(config).values():
        for name, file in files.items():
            write(Path(directory) / "source" / name, _read(file))
    return {
        # One file may hold several modules: the target's name counts, too.
        group: hashlib.sha256(
            repr([config[group]["_target_"], *sorted(digests.items())]).encode()
        ).hexdigest()[:16]
        for group, digests in source(config).items()
    }


def refuse_changed_source(config, state):
    """Raise UserError where the run of `state` has another config, or where a module of the user's
    own, or a folder of images, is not what it trained with.

    state: the run.json. A record without sources is unknown, and goes on; so does a run that has
    no checkpoint yet.
    """
    directory = run_directory(config)
    refuse_another_config(directory, state, config)
    source(config)  # digests of what has just been imported, before anybody edits it
    saved = (checkpoint.NAME, checkpoint.PREVIOUS)
    if state.get("state") != "finished" and not any((directory / name).exists() for name in saved):
        return
    if "data_files" in state:  # of class folders
        data = config["data"]
        if state["data_files"] != _files_now(data["root"], data.get("test_share")):
            raise UserError(other_images(directory, config))
    if changed := changed_since(config, state):
        raise UserError(
            f"{changed} has changed since {directory} was begun (comments do not count): undo the "
            f"change ({directory / 'source'} has the file as it was), or train anew with rerun=true"
        )


@functools.cache  # once for all runs of a sweep: a folder may hold 60,000 files
def _files_now(root, test_share):
    """The digest of the list of files under data.root."""
    return files_digest(list_images(root, test_share)[0])


def set_aside(configs):
    """With rerun=true: rename the run directories that a command trains anew to `.NAME.1` (2, ...),
    which no table reads.

    Where all runs of the command are finished, these are all of them. Otherwise the command was
    stopped: what it has trained stays, and only runs whose source has changed are trained anew.
    Returns {directory: where its run is now}. Raises UserError where a directory holds another
    config's run, OwnedElsewhere where it is trained.
    """
    kept = {}
    configs = [config for config in configs if config["rerun"]]
    states = [read_state(run_directory(config)) for config in configs]
    # A command that was stopped has finished runs that are already new.
    finished = all(state.get("state") == "finished" for state in states)
    for config, state in zip(configs, states, strict=True):
        directory = run_directory(config).resolve()
        refuse_another_config(directory, state, config)
        if not state or not (finished or changed_since(config, state)):
            continue
        names = (directory.with_name(f".{directory.name}.{n}") for n in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        with owner(directory):
            if read_state(directory) == state:  # no other process has set it aside meanwhile
                directory.rename(aside)
                kept[directory] = aside
                print(f"trained anew; the earlier run is kept as {aside}")
    return kept


def put_back(kept):
    """Undo `set_aside` where the new run has not begun: its directory has a lock alone."""
    for directory, aside in kept.items():
        with contextlib.suppress(OSError):
            (directory / FILE).unlink(missing_ok=True)
            directory.rmdir()
            aside.rename(directory)
            print(f"nothing was trained: the earlier run is in {directory} again")


def changed_since(config, state):
    """The first of the user's own files, or else targets, that is not what a run.json has; None
    where there is none. Of a continued run the sources of its last part count; where run.json has
    no sources, no file is known to have changed.
    """
    parts = [state, *(state.get("continued") or [])]
    sources = next((part["source"] for part in reversed(parts) if part.get("source")), {})
    for group, files in _own(config).items():
        for name, file in files.items():
            if group in sources and sources[group].get(name) != _digest(file):
                return file
    # One file may hold several modules: the target's name counts, too.
    there = state.get("config", config)
    targets = ((there[group].get("_target_"), config[group].get("_target_")) for group in GROUPS)
    return next((f"_target_ {then}" for then, now in targets if then != now), None)


# ---------------------------------------------------------------------------------- which files


def _own(config):
    """{"attention": {name: file}, "model": ...}: of what is the user's own."""
    targets = {group: config[group].get("_target_") for group in ("attention", "model")}
    return {group: own_files(target) for group, target in targets.items() if own_files(target)}


@functools.cache  # of the code that runs, not of what is edited while a sweep goes on
def own_files(target):
    """{name: file} of the file that defines a target and of the local files that it imports,
    without those of the repository. {} for a SHIPPED target, and for None.

    A name is the module's as a path: "lcm/attention/mine.py".
    """
    if target in SHIPPED:
        return {}
    module = target.rpartition(".")[0]
    home = getattr(get_object(target), "__module__", module)  # a package may import it
    # What the repository's own modules import is the repository's, also where a module of one's
    # own imports it. The file that defines the target is the user's in any case.
    repository = _closure([*PUBLIC, *(name.rpartition(".")[0] for name in SHIPPED if name)])
    return {
        name: file
        for name, file in _closure([module, home]).items()
        if name not in repository or file == _local(home)
    }


def _closure(modules):
    """{name: file} of local modules, of their packages and of all that these import."""
    found, todo = {}, list(modules)
    while todo:
        module = todo.pop()
        file = _local(module)
        if file is None:
            continue
        parent = module.rpartition(".")[0]
        # What relative imports start from: an __init__.py is inside its package.
        package = module if file.name == "__init__.py" else parent
        name = "/".join([*package.split("."), file.name]).lstrip("/")
        if name not in found:
            found[name] = file
            # To import a module Python runs the __init__.py of each package above it.
            todo += [*_imports(file, package), *filter(None, [parent])]
    return dict(sorted(found.items()))


@functools.cache
def _local(module):
    """The file of a module that is neither the standard library's nor installed; None otherwise.
    Nothing is imported, and a folder may lack its __init__.py.
    """
    # importlib.util.find_spec would import the packages above a module. The finders themselves,
    # asked for one part of the name after the other, import nothing.
    places = [place for place in sys.path if not INSTALLED.intersection(Path(place).parts)]
    name, spec = "", None
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        found = (finder.find_spec(name, places) for finder in sys.meta_path)
        spec = next(filter(None, found), None)  # of an editable installation, too
        if spec is None or name in sys.stdlib_module_names:
            return None
        places = spec.submodule_search_locations or []
    # A folder without __init__.py has no origin, a compiled module no source.
    return Path(spec.origin) if str(spec.origin).endswith(".py") else None


def _imports(file, package):
    """The modules that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(_read(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            # `b` of `from a import b` may be a module, too; `_local` passes over what is none.
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


# -------------------------------------------------------------------------------------- digests


class _Bare(ast.NodeTransformer):
    """Takes docstrings out of a tree, and other lone constants, which do nothing either."""

    def visit_Expr(self, node):
        return None if isinstance(node.value, ast.Constant) else node


@functools.cache
def _digest(file):
    """Of what a file does."""
    tree = _Bare().visit(ast.parse(_read(file)))
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]
