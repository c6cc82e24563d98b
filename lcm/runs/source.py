"""The source files of a run's attention and network, and whether they have changed.

A file counts as its syntax tree without docstrings, so that comments and layout do not count. Files
of the standard library and of installed packages are left to the versions that run.json has.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import itertools
import sys
from pathlib import Path

from hydra.utils import get_object

from lcm.config.compose import SHIPPED
from lcm.data.folder import files_digest, list_images
from lcm.errors import UserError
from lcm.files import unwritable, write
from lcm.runs.directory import run_directory
from lcm.runs.lock import owner
from lcm.runs.state import other_images, read_state, refuse_another_config
from lcm.training import checkpoint

PUBLIC = ("lcm", "lcm.models.build")  # what a module of one's own may import of the repository
INSTALLED = {"site-packages", "dist-packages"}


# ------------------------------------------------------------------------------- what is recorded


def source(config):
    """{"attention": {file: digest}, "model": {...}}: each with the local files that it imports."""
    targets = _targets(config)
    return {group: _digests(files_of(target)) for group, target in targets.items()}


def keep_own(config, directory):
    """Copy the user's own files to `directory`/source.

    Returns {"attention": one digest of all its own
    files}, {} where attention and network are the repository's."""
    digests = {}
    for group, target in _targets(config).items():
        files = own_files(target)
        for name, file in files.items():
            write(Path(directory) / "source" / name, file.read_bytes())
        if files:
            text = repr(sorted(_digests(files).items()))
            digests[group] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return digests


def refuse_changed_source(config, state):
    """Raise UserError where a module of the user's own, or a folder of images, is not what the run
    of `state` trained with.

    state: the run.json. A record without sources is unknown, and goes on; so does a run that has
    no checkpoint yet.
    """
    directory = run_directory(config)
    saved = any((directory / name).exists() for name in (checkpoint.NAME, checkpoint.PREVIOUS))
    if state.get("state") != "finished" and not saved:
        return
    if "data_files" in state:  # of class folders
        chosen = {k: v for k, v in config["data"].items() if k in ("root", "test_share")}
        if state["data_files"] != _files_now(**chosen):
            raise UserError(other_images(directory, config))
    for group, target in _targets(config).items():
        files = own_files(target)
        then = _recorded(state).get(group)
        if then is None:
            continue
        if changed := [
            name for name, digest in _digests(files).items() if digest != then.get(name)
        ]:
            raise UserError(
                f"{files[changed[0]]} has changed since {directory} was begun (comments do not "
                f"count): undo the change ({directory / 'source'} has the file as it "
                "was), or train anew with rerun=true"
            )


@functools.cache  # once for all runs of a sweep: a folder may hold 60,000 files
def _files_now(root, test_share=None):
    """The digest of the list of files under data.root."""
    return files_digest(list_images(root, test_share)[0])


def set_aside(configs):
    """With rerun=true: rename the run directories that a command trains anew to `.NAME.1` (2, ...),
    which no table reads.

    These are the runs of another source; where all runs of the command are finished, all of them.
    Otherwise the command was stopped, and what it has trained stays.
    Raises UserError where a directory holds another config's run, OwnedElsewhere where it is
    trained.
    """
    configs = [config for config in configs if config["rerun"]]
    states = [read_state(run_directory(config)) for config in configs]
    finished = all(state.get("state") == "finished" for state in states)
    for config, state in zip(configs, states, strict=True):
        directory = run_directory(config).resolve()
        refuse_another_config(directory, state, config)
        if not state or not (finished or _recorded(state) != source(config)):
            continue
        names = (directory.with_name(f".{directory.name}.{n}") for n in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        with owner(directory):
            try:
                directory.rename(aside)
            except OSError as error:
                raise unwritable(aside, error) from error
        print(f"trained anew; the earlier run is kept as {aside}")


def _recorded(state):
    """The sources in a run.json, the last ones where it was continued; {} where it has none."""
    parts = [state, *(state.get("continued") or [])]
    return next((part["source"] for part in reversed(parts) if part.get("source")), {})


def _targets(config):
    """{"attention": its _target_, "model": ...}; none for attention=none."""
    groups = {group: config[group].get("_target_") for group in ("attention", "model")}
    return {group: target for group, target in groups.items() if target}


# ---------------------------------------------------------------------------------- which files


@functools.cache  # of the code that runs, not of what is edited while a sweep goes on
def files_of(target):
    """{name: file} of the file that defines a target and of the local files that it imports.

    A name is the module's as a path: "lcm/attention/cbam.py".
    """
    get_object(target)  # imported, so that `_home` can follow its name
    module, _, name = target.rpartition(".")
    return _closure([_home(module, name)])


@functools.cache
def own_files(target):
    """Those of `files_of` a target that are not the repository's; {} for a SHIPPED target."""
    if target in SHIPPED:
        return {}
    repository = set(_closure(PUBLIC))
    repository = repository.union(*(files_of(shipped) for shipped in SHIPPED))
    return {name: file for name, file in files_of(target).items() if name not in repository}


def _closure(modules):
    """{name: file} of local modules and of all that they import, whatever the depth."""
    found, seen, todo = {}, set(), list(modules)
    while todo:
        module = todo.pop()
        spec = None if module in seen else _local(module)
        seen.add(module)
        if spec and str(spec.origin).endswith(".py"):
            package = spec.submodule_search_locations is not None
            name = module.replace(".", "/") + ("/__init__.py" if package else ".py")
            found[name] = Path(spec.origin)
            todo += _imports(_tree(found[name]), module if package else spec.parent)
    return dict(sorted(found.items()))


@functools.cache
def _local(module):
    """The spec of a module that is neither the standard library's nor installed; None otherwise."""
    top, _, _ = module.partition(".")
    parent, _, _ = module.rpartition(".")
    # Asked from the top: to find a module, Python imports the packages above it.
    if top in sys.stdlib_module_names or (parent and not _local(parent)):
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
    parts = [Path(place).parts for place in places if place]
    return spec if parts and not any(INSTALLED.intersection(found) for found in parts) else None


def _imports(tree, package):
    """The modules that a file imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(relative, package)
            yield from (_home(module, alias.name) for alias in node.names)


def _home(module, name):
    """The local module in which `name` of `from module import name` is defined."""
    if _local(f"{module}.{name}"):
        return f"{module}.{name}"
    value = getattr(sys.modules.get(module), name, None)
    defined = inspect.isclass(value) or inspect.isfunction(value)
    return value.__module__ if defined and _local(value.__module__) else module


# -------------------------------------------------------------------------------------- digests


def _digests(files):
    return {name: _digest(file) for name, file in files.items()}


@functools.cache
def _digest(file):
    """Of a file's syntax tree, the same under every version of Python that reads it alike."""
    return hashlib.sha256(repr(_plain(_tree(file))).encode()).hexdigest()[:16]


@functools.cache
def _tree(file):
    """The syntax tree of a file, without docstrings."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return tree


def _plain(node):
    """A tree as nested lists. Empty fields are left out: newer versions of Python add such ones."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [
        (name, _plain(value)) for name, value in ast.iter_fields(node) if value not in (None, [])
    ]
    return [type(node).__name__, *fields]
