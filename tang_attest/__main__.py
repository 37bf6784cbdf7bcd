"""``python -m tang_attest``."""

from tang_attest.cli import main

if __name__ == "__main__":
    main()
