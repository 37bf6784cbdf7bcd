"""Write the files of a package that are made from the program: a manual page for each command, and completions.

    python -m tools.generate_share SHARE [ZSH]

SHARE is the package's /usr/share; ZSH the directory below share/zsh for completions (vendor-completions, as Debian has
it, by default).
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Final

from tang_attest.cli import group
from tools.generate_manual import manual, pages

_USAGE: Final = "usage: python -m tools.generate_share SHARE [ZSH]"


def write(share: Path, zsh: str) -> None:
    """Write everything below *share*."""
    files = {f"man/man8/{name}": text for name, text in {"tang-attest.8": manual(), **pages()}.items()}
    files["bash-completion/completions/tang-attest"] = completion("bash")
    files[f"zsh/{zsh}/_tang-attest"] = completion("zsh")
    files["fish/vendor_completions.d/tang-attest.fish"] = completion("fish")
    for name, text in files.items():
        path = share / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)


def completion(shell: str) -> str:
    """The output of ``tang-attest completion``."""
    output = io.StringIO()
    with redirect_stdout(output):
        group(["completion", shell], prog_name="tang-attest", standalone_mode=False)
    return output.getvalue()


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(_USAGE)
    write(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "vendor-completions")
