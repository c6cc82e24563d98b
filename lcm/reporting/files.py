"""Writing results: a reader sees the old file or the new one, and a file that would not change is not touched."""

import os
from pathlib import Path

from lcm.errors import UserError


def write(file, content):
    """Write text (UTF-8, \\n line ends) or bytes to `file` through a temporary name; returns whether the file changed."""
    file = Path(file)
    content = content.encode() if isinstance(content, str) else content
    try:
        if file.is_file() and file.read_bytes() == content:
            return False
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {file} ({error.strerror}): make room or choose another folder with --results"
        ) from error
    return True
